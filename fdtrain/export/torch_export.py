"""The field as a graph of ``torch.export``, ``model.pt2``, for any number of images."""

from pathlib import Path

import torch

from fdtrain.export import agreement
from fdtrain.networks.model import Model

FILE = "model.pt2"
LOADING = """```python
import torch

field = torch.export.load("FOLDER/model.pt2").module()  # runs what the file says: load it from whom you trust
F = field(x, t)  # images (N, C, H, W) float32, times (N,) float64 in INTERVAL; LABELS
```"""


def write(model: Model, folder: Path) -> float:
    """Write the graph, and return the largest difference of its field."""
    program = torch.export.export(model, arguments(model), dynamic_shapes=dynamic(model))
    torch.export.save(program, folder / FILE)
    graph = torch.export.load(folder / FILE).module()
    return agreement.check(model, lambda x, t, label: graph(*given(x, t, label)), "the exported graph")


def arguments(model: Model) -> tuple[torch.Tensor, ...]:
    """Example inputs: of one image, the number would be taken for a constant."""
    return given(*agreement.inputs(model, 2))


def given(*inputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Without the label that an unconditional model has not."""
    return tuple(value for value in inputs if value is not None)


def dynamic(model: Model) -> dict[str, dict[int, torch.export.Dim]]:
    """The first dimension of every input is free."""
    images = torch.export.Dim("images")
    return {name: {0: images} for name in ("x", "t", "label")[: len(arguments(model))]}
