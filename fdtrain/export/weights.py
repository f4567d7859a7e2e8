"""Weights as safetensors with the description that rebuilds the model: what ``fdtrain.load`` reads."""

from pathlib import Path

from safetensors.torch import save_file

from fdtrain.evaluation.load import SPEC_FILE, WEIGHTS_FILE
from fdtrain.export import agreement
from fdtrain.networks.model import Model, ModelSpec, load_weights
from fdtrain.plugins import save_copies

LOADING = """```python
import fdtrain  # needs no DeepSpeed

model = fdtrain.load("FOLDER")
images = model.sample(16, steps=20, seed=0)  # uint8 levels (N, C, H, W)
pixels = model.pixels(images)  # 0 to 255
```"""


def write(model: Model, folder: Path) -> float:
    """Write the two files, and copies of code of the user's own; return the largest difference of the model that they
    give."""
    save_file(model.state_dict(), folder / WEIGHTS_FILE)
    model.spec.save(folder / SPEC_FILE)
    save_copies(model.spec.code, folder)
    loaded = load_weights(ModelSpec.load(folder / SPEC_FILE), folder / WEIGHTS_FILE)
    return agreement.check(model, loaded, "the model that was read back")
