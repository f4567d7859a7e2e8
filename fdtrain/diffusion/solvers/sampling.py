"""From pure noise at ``t = 1`` exactly to an image at ``t = 0`` exactly, by the steps of a solver."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.predictors import Field, score
from fdtrain.diffusion.solvers.grids import check_grid
from fdtrain.diffusion.solvers.named import DEFAULT, SOLVERS, Solver
from fdtrain.diffusion.solvers.step import FORMS, Step

MEMORY = 4
"""Most evaluations that a step takes."""


def _at(field: Field, x: Tensor, t: float) -> Tensor:
    return field(x, torch.full((x.shape[0],), t, dtype=torch.float64, device=x.device))


def _combine(start: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    for weight, value in zip(weights, values):
        start = torch.add(start, value, alpha=weight)
    return start


@lru_cache(maxsize=64)
def _steps(solver: Solver, times: tuple[float, ...], interval: Interval) -> list[Step]:
    """Once per grid, whatever the number of batches."""
    return solver.steps_within(times, interval)


def sample(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    solver: str | Solver = DEFAULT,
    noise: Callable[[int], Tensor] | None = None,
    observe: Callable[[int, float, Tensor, Tensor], None] | None = None,
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
        observe: called before step ``i`` with ``(i, s, x_s, F_s)``, ``x_s`` being where ``F`` was evaluated.
        interval: of the model.

    Returns:
        Images in the dequantised range, about [-1, 1]. Evaluations used: steps times
        ``evaluations_per_step``.

    Raises:
        ValueError: the times do not fall strictly from 1 to 0, or leave the interval.
    """
    check_grid(times, interval)
    chosen = SOLVERS[solver] if isinstance(solver, str) else solver
    return integrate(field, x, times, chosen, noise, observe, interval)


def integrate(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    solver: Solver,
    noise: Callable[[int], Tensor] | None = None,
    observe: Callable[[int, float, Tensor, Tensor], None] | None = None,
    interval: Interval = CLOSED,
) -> Tensor:
    """:func:`sample` between any two times."""

    def evaluate(x: Tensor, t: float, step: int | None) -> Tensor:
        F = _at(field, x, t)
        if observe is not None and step is not None:
            observe(step, t, x, F)
        return FORMS[solver.form](x, F, t)

    twice = solver.evaluations_per_step == 2
    values = [evaluate(x, times[0], 0)]
    for i, step in enumerate(_steps(solver, tuple(times), interval), 1):
        start = step.linear * x
        if solver.stochastic:
            assert noise is not None
            start.add_(noise(i - 1), alpha=step.noise)
        x = _combine(start, step.predictor, values)
        if step.corrector:
            # The same linear part and noise, once more with the evaluation at the predicted x_t.
            values = [evaluate(x, step.t, None if twice else i), *values]
            x = _combine(start, step.corrector, values)
        if twice and step.t > 0:
            values[0] = evaluate(x, step.t, i)
        elif not step.corrector and i < len(times) - 1:
            values = [evaluate(x, step.t, i), *values]
        values = values[:MEMORY]
    return x


def euler_maruyama(field: Field, x: Tensor, steps: int, noise: Callable[[int], Tensor], t_min: float = 1e-3) -> Tensor:
    """The usual truncated sampler, as a peer: Euler-Maruyama on the linear-beta VP-SDE (Song et al. 2021).

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
