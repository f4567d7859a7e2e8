"""A folder that ``DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`` samples from.

Its code needs Diffusers and torch, and no fdtrain: networks and solvers are written into it. Files of code carry a
checksum in their names, since Diffusers' cache of modules goes by name alone.
"""

import hashlib
import json
import runpy
from pathlib import Path

import diffusers
from safetensors.torch import save_file

from fdtrain.errors import UserError
from fdtrain.export import agreement
from fdtrain.export.bundle import SOLVERS, bundle
from fdtrain.networks.model import NETWORKS, Model, ModelSpec

TEMPLATES = Path(__file__).parent / "templates"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LOADING = """```python
from diffusers import DiffusionPipeline

# trust_remote_code runs the Python files of the folder; they need no fdtrain.
pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
images = pipeline(batch_size=16, num_inference_steps=20).images
```"""


def write(model: Model, folder: Path) -> float:
    """Write the pipeline, and return the largest difference of its field. Raises UserError: the network or the
    predictor is the user's own."""
    spec = model.spec
    if spec.code:
        raise UserError(f"--format diffusers: it cannot carry {', '.join(spec.code)}. Take onnx or torch_export.")
    field = _write_code(folder / "field", "field", field_code(spec))
    scheduler = _write_code(folder / "scheduler", "scheduler", _template("scheduler", CODE=bundle(SOLVERS)))
    pipeline = _write_code(folder, "pipeline", _template("pipeline"))
    # A configuration's names are attributes of the model in Diffusers, as its parts are.
    renamed = {"network": "network_name", "predictor": "predictor_name"}
    config = {renamed.get(name, name): value for name, value in spec.content().items()}
    _write_json(folder / "field" / "config.json", {"_class_name": "FdtrainField", **config})
    save_file(model.state_dict(), folder / "field" / WEIGHTS, {"format": "pt"})
    grids = {"levels": spec.levels, "dims": spec.dims, "interval": spec.interval}
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "FdtrainScheduler", **grids})
    index = {
        "_class_name": [pipeline.stem, "FdtrainPipeline"],
        "field": [field.stem, "FdtrainField"],
        "scheduler": [scheduler.stem, "FdtrainScheduler"],
    }
    _write_json(folder / "model_index.json", index)
    code = runpy.run_path(str(field))  # Without Diffusers' cache.
    code["write_checksums"](folder / "field")
    loaded = code["FdtrainField"].from_pretrained(folder / "field", low_cpu_mem_usage=False)
    return agreement.check(model, lambda x, t, label: loaded(x, t, label).sample, "the Diffusers model")


def field_code(spec: ModelSpec) -> str:
    """The model of the network that the description names."""
    network = NETWORKS[spec.network]
    code = bundle(["fdtrain.diffusion.predictors", network.__module__])
    values = {"CODE": code, "VERSION": str(spec.version), "NETWORK": spec.network, "CLASS": network.__name__}
    return _template("field", **values)


def _template(name: str, **values: str) -> str:
    text = (TEMPLATES / f"diffusers_{name}.py.txt").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _write_code(folder: Path, name: str, code: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"fdtrain_{name}_{hashlib.sha256(code.encode()).hexdigest()[:10]}.py"
    path.write_text(code, encoding="utf-8")
    return path


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps({"_diffusers_version": diffusers.__version__, **content}, indent=2) + "\n")
