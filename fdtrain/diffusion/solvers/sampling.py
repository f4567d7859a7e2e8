"""From pure noise at ``t = 1`` exactly to an image at ``t = 0`` exactly, by the steps of a solver."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.predictors import Field, score
from fdtrain.diffusion.solvers.grids import check_grid
from fdtrain.diffusion.solvers.named import DEFAULT, Solver
from fdtrain.diffusion.solvers.stepper import Stepper


def _at(field: Field, x: Tensor, t: float) -> Tensor:
    return field(x, torch.full((x.shape[0],), t, dtype=torch.float64, device=x.device))


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
        F = _at(field, x, t)
        if observe is not None:
            observe(t, x, F)
        x = stepper.advance(i, x, F, noise(i) if noise is not None and stepper.stochastic else None)
    return x


def euler_maruyama(field: Field, x: Tensor, steps: int, noise: Callable[[int], Tensor], t_min: float = 1e-3) -> Tensor:
    """The usual truncated sampler, to compare with: Euler-Maruyama on the linear-beta VP-SDE (Song et al. 2021).

    Uniform steps in that process's time from 1 to ``t_min``, beta from 0.1 to 20. It starts from a
    standard normal, which its ``x_1`` is not exactly, and ends on images that still carry noise.
    """
    taus = np.linspace(1.0, t_min, steps + 1)
    for i, (now, then) in enumerate(pairwise(taus)):
        h, beta = now - then, 0.1 + 19.9 * now
        # log alpha^2 = -Int beta: sigma^2 = 1 - alpha^2 by expm1.
        sigma = math.sqrt(-math.expm1(-0.1 * now - 9.95 * now * now))
        F = _at(field, x, sigma)
        t = torch.full((x.shape[0],), sigma, dtype=torch.float64, device=x.device)
        x = x + h * beta * (0.5 * x + score(F, x, t)) + math.sqrt(h * beta) * noise(i)
    return x
