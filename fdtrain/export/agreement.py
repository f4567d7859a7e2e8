"""How far the field of an export is from that of the model, on the same inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from fdtrain.diffusion.interval import Interval
from fdtrain.errors import UserError
from fdtrain.networks.model import Model

TOLERANCE = 1e-4
"""Above which an export fails."""
TIMES = (0.0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1.0)
"""From one end of the model's interval to the other."""

Field = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``F(x, t, label)`` of an export."""


def times(interval: Interval) -> list[float]:
    """:data:`TIMES` in the interval, its ends exact: beyond them a field need not be finite."""
    low, high = interval.t_min, interval.t_max
    return [low, *(low + (high - low) * share for share in TIMES[1:-1]), high]


def inputs(model: Model, count: int = len(TIMES)) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, times with both ends among them, and labels of a class-conditional model, the last of them included."""
    spec, generator = model.spec, torch.Generator().manual_seed(0)
    x = torch.randn(count, *spec.shape, generator=generator)
    t = torch.tensor(times(spec.bound.interval) * -(-count // len(TIMES)), dtype=torch.float64)[:count]
    classes = len(spec.classes) + spec.null_class
    return x, t, (-1 - torch.arange(count)) % classes if classes else None


@torch.no_grad()
def check(model: Model, exported: Field, what: str) -> float:
    """The largest difference of the fields, relative to the largest value of the same image's field if above 1.

    Batches of one image and of several are compared: no size is built into the export.

    Raises UserError: it is above :data:`TOLERANCE`.
    """
    largest = 0.0
    for count in (len(TIMES), 1):
        x, t, label = inputs(model, count)
        expected, found = model(x, t, label), exported(x, t, label)
        size = expected.abs().flatten(1).amax(1).clamp(min=1)
        differences = (found - expected).abs().flatten(1).amax(1) / size
        # Not a number is above any tolerance.
        largest = max(largest, differences.nan_to_num(torch.inf).max().item())
    if not largest <= TOLERANCE:
        raise UserError(
            f"{what} differs from the model by {largest:.1e} (relative; up to {TOLERANCE:.0e} is allowed). Nothing was "
            "written."
        )
    return largest
