"""From pure noise at ``t = 1`` exactly to an image at ``t = 0`` exactly, by the steps of a solver."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.predictors import Field
from fdtrain.diffusion.solvers.grids import check_grid
from fdtrain.diffusion.solvers.named import DEFAULT, Solver
from fdtrain.diffusion.solvers.stepper import Stepper


def sample(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    solver: str | Solver = DEFAULT,
    noise: Callable[[int], Tensor] | None = None,
    observe: Callable[[float, Tensor, Tensor], object] | None = None,
    interval: Interval = CLOSED,
) -> Tensor:
    """Solve the reverse equation from ``x`` at ``times[0] = 1`` to ``times[-1] = 0``.

    On a truncated interval: from ``t_max``, where ``x`` is not quite normal, to the last time before 0, and from there
    to the image that is predicted.

    Args:
        field: ``F(x, t)``.
        x: standard normal noise ``(B, C, H, W)``.
        times: a grid as :func:`fdtrain.diffusion.solvers.time_grid` makes, or the user's own.
        solver: a name in :data:`SOLVERS`, or a solver.
        noise: for the stochastic solvers, ``noise(i)`` gives the standard normal of step ``i``.
        observe: called with ``(t, x, F(x, t))`` at each evaluation.
        interval: of the model.

    Returns:
        Images in the dequantised range, about [-1, 1].

    Raises:
        ValueError: the times do not fall strictly from 1 to 0, or leave the interval.
    """
    check_grid(times, interval)
    stepper = Stepper(solver, times, interval)
    for i, t in enumerate(stepper.times):
        F = field(x, torch.full((x.shape[0],), t, dtype=torch.float64, device=x.device))
        if observe is not None:
            observe(t, x, F)
        x = stepper.advance(i, x, F, noise(i) if noise is not None and stepper.stochastic else None)
    return x
