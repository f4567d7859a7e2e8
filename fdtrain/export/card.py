"""The model card of an export, README.md: what the model is, what it was measured at, how to load it."""

import json
from typing import Any

from fdtrain import __version__
from fdtrain.errors import excerpt
from fdtrain.evaluation import result
from fdtrain.evaluation.load import ModelOrigin
from fdtrain.evaluation.result import FrechetResult, NllResult
from fdtrain.evaluation.wording import escaped, with_error
from fdtrain.networks.model import Model, ModelSpec, parameter_count

LIBRARIES = {"safetensors": "fdtrain", "diffusers": "diffusers", "onnx": "onnx", "torch_export": "pytorch"}


def text(model: Model, origin: ModelOrigin, record: dict[str, Any], loading: str, name: str, licence: str) -> str:
    """The card; ``record`` is what export.json says, ``loading`` how the form is loaded."""
    spec = model.spec
    size = " x ".join(map(str, spec.shape))
    labels = f", {len(spec.classes)} classes" if spec.classes else ""
    guided = ", trained with dropped labels (guidance)" if spec.null_class else ""
    step = "" if origin.step is None else f", weights of step {origin.step:,}"
    step += "" if origin.ema_length is None else f" (average of relative length {origin.ema_length:g})"
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        f"library_name: {LIBRARIES[record['format']]}",
        "tags: [diffusion, unconditional-image-generation, likelihood, fdtrain]",
        "---",
        "",
        f"# {excerpt(name)}",
        "",
        f"A diffusion model on the time interval {interval(spec)}, exported by fdtrain {__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| data set | {_cell(spec.dataset)}: {size} (C, H, W), {spec.levels} levels{labels} |",
        f"| network | {spec.network}, {parameter_count(model):,} parameters{guided}{step} |",
        f"| predictor | `{spec.predictor}`{_network_inputs(spec)} |",
        f"| bound | {spec.bound.describe()}; dequantisation: {spec.bound.dequantisation} |",
        *([f"| source | {_cell(record['source'])} |"] if record["source"] else []),
        f"| weights, SHA-256 | `{origin.sha256}` |",
        f"| difference to the model | {record['largest_difference']:.1e} at most (relative; both ends too) |",
        f"| licence | {_cell(licence)} |",
        "",
        "## Figures",
        "",
        *(_figures(origin) or ["None were recorded for these weights when they were exported."]),
        "",
        "## Loading",
        "",
        loading,
    ]
    return "\n".join(lines) + "\n"


def interval(spec: ModelSpec) -> str:
    """The times of the model, to the last digit."""
    return f"[{', '.join(repr(float(t)).removesuffix('.0') for t in spec.interval)}]"


def _network_inputs(spec: ModelSpec) -> str:
    """What the network is given instead of the predictor's own image and time, and whether its input is added."""
    named = {"network_input": spec.network_input, "network_time": spec.network_time}
    given = "".join(f", {name} `{value}`" for name, value in named.items() if value is not None)
    return given + (", network_skip" if spec.network_skip else "")


def _figures(origin: ModelOrigin) -> list[str]:
    """Rows of the results of the run that are of these very weights."""
    folder, rows = origin.results, []
    for path in sorted(folder.glob("*.json")) if folder else []:
        found = result.read(path)
        if found is None or found.weights_sha256 != origin.sha256:
            continue
        if isinstance(found, NllResult):
            on = f"{found.images:,} of {found.images_in_split:,} images of {_cell(found.dataset)}/{_cell(found.split)}"
            for title, value in found.estimates():
                rows.append(f"| {title}, bits/dim | {with_error(value.bits_per_dim, value.error_images, 4)} | {on} |")
        elif isinstance(found, FrechetResult):
            how = f"{found.images:,} images, {_cell(found.solver)}, {found.nfe} evaluations"
            rows.append(f"| {_cell(found.name)} | {with_error(found.value, found.spread, 3)} | {how} |")
    return ["| figure | value | on |", "|---|---|---|", *rows] if rows else []


def _cell(value: object) -> str:
    """Text from elsewhere, in a table."""
    return escaped(excerpt(value))
