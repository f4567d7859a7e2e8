"""From pure noise at ``t = 1`` exactly to an image at ``t = 0`` exactly (docs/method.md, sections 5 and 6).

A solver is a function that takes one step from ``s`` to ``t < s``. The linear part of the equation is
solved exactly and only ``F``, which is finite everywhere, is approximated: nothing is singular at the ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fdtrain.diffusion.predictors import Field, score


@dataclass(frozen=True)
class Evaluation:
    """The field ``F`` at ``x`` and time ``t``."""

    x: Tensor
    F: Tensor
    t: float


def _alpha(t: float) -> float:
    return math.sqrt((1 - t) * (1 + t))


def _evaluate(field: Field, x: Tensor, t: float) -> Evaluation:
    return Evaluation(x, field(x, torch.full((x.shape[0],), t, dtype=torch.float64, device=x.device)), t)


def sde1(field: Field, x: Tensor, now: Evaluation, t: float, before: Evaluation | None, z: Tensor) -> Tensor:
    """First order: ``F`` frozen at ``s``. ``x_t = c x_s - (s^2 - t^2) / alpha_t F_s + sqrt(1 - c^2) z``."""
    return _sde_step(x, now, t, (now.t - t) * (now.t + t) * now.F, z)


def sde2(field: Field, x: Tensor, now: Evaluation, t: float, before: Evaluation | None, z: Tensor) -> Tensor:
    """Second order, multistep: ``F`` linear in time through the last two evaluations ``F_s, F_r``, r > s."""
    if before is None:
        return sde1(field, x, now, t, before, z)
    s, r = now.t, before.t
    y = (s - t) * (s + t)
    g = (2 * (s**3 - t**3) / 3 - s * y) / (r - s)
    return _sde_step(x, now, t, (y - g) * now.F + g * before.F, z)


def _sde_step(x: Tensor, now: Evaluation, t: float, integral: Tensor, z: Tensor) -> Tensor:
    """The step with ``Int_{t^2}^{s^2} F dy`` given; ``1 - c^2 = (s^2 - t^2) / alpha_t^2`` without cancellation."""
    s = now.t
    return (_alpha(s) * x - integral + math.sqrt((s - t) * (s + t)) * z) / _alpha(t)


def ode1(field: Field, x: Tensor, now: Evaluation, t: float, before: Evaluation | None, z: None) -> Tensor:
    """First order in ``alpha``: ``dx = -F d(alpha)``."""
    return x - (_alpha(t) - _alpha(now.t)) * now.F


def ode2(field: Field, x: Tensor, now: Evaluation, t: float, before: Evaluation | None, z: None) -> Tensor:
    """Second order, multistep: ``F`` linear in ``alpha`` through the last two evaluations."""
    if before is None:
        return ode1(field, x, now, t, before, z)
    step = _alpha(t) - _alpha(now.t)
    slope = (now.F - before.F) / (_alpha(now.t) - _alpha(before.t))
    return x - step * now.F - 0.5 * step * step * slope


def heun(field: Field, x: Tensor, now: Evaluation, t: float, before: Evaluation | None, z: None) -> Tensor:
    """Heun's second-order step in the angle: ``dx/dphi = sin(phi) F``, ``t = sin(phi)``. Two evaluations."""
    step = math.asin(t) - math.asin(now.t)
    slope = now.t * now.F
    ahead = _evaluate(field, x + step * slope, t)
    return x + 0.5 * step * (slope + t * ahead.F)


def dpmpp2m(field: Field, x: Tensor, now: Evaluation, t: float, before: Evaluation | None, z: None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): multistep on ``x0_hat`` in ``l = log(alpha / t)``.

    ``x_t = (t/s) x_s - (alpha_s t/s - alpha_t) D``, ``D = x0_s + (x0_s - x0_r) (l_t - l_s) / (2 (l_s - l_r))``. Where
    ``l`` is infinite the extrapolation has nothing to go by: none from ``r = 1``, by the formula itself, and none to
    ``t = 0``. Those first-order steps are DDIM's, ``alpha_t x0_hat + t eps_hat``.
    """
    s = now.t
    D = _x0(now)
    if before is not None and t > 0:
        D = D + (D - _x0(before)) * _half_log_snr_step(s, t) / (2 * _half_log_snr_step(before.t, s))
    return t / s * x - (_alpha(s) * t / s - _alpha(t)) * D


def _x0(evaluation: Evaluation) -> Tensor:
    """The predicted image ``alpha x - t^2 F``."""
    return _alpha(evaluation.t) * evaluation.x - evaluation.t**2 * evaluation.F


def _half_log_snr_step(s: float, t: float) -> float:
    """``l_t - l_s``; infinite from ``s = 1``."""
    return math.log(_alpha(t) * s / (t * _alpha(s))) if s < 1 else math.inf


@dataclass(frozen=True)
class Solver:
    """A stepping function, and what a caller must know about it."""

    step: Callable[..., Tensor]
    stochastic: bool
    evaluations_per_step: int = 1


SOLVERS = {
    "sde1": Solver(sde1, stochastic=True),
    "sde2": Solver(sde2, stochastic=True),
    "ode1": Solver(ode1, stochastic=False),
    "ode2": Solver(ode2, stochastic=False),
    "heun": Solver(heun, stochastic=False, evaluations_per_step=2),
    "dpmpp2m": Solver(dpmpp2m, stochastic=False),
}

GRIDS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "uniform": lambda u, scale: u,
    # Denser near the data.
    "asinh": lambda u, scale: np.sinh(u * math.asinh(1 / scale)) / math.sinh(math.asinh(1 / scale)),
    # Uniform in phi, t = sin(phi).
    "angle": lambda u, scale: np.sin(0.5 * math.pi * u),
}


def time_grid(kind: str, steps: int, scale: float = 1 / 256) -> list[float]:
    """``steps + 1`` falling times from 1.0 to 0.0, both exact. ``scale`` is the ``s`` of ``asinh``."""
    times = GRIDS[kind](np.linspace(1.0, 0.0, steps + 1), scale)
    return [float(t) for t in times]


def check_grid(times: Sequence[float]) -> None:
    """Raise ValueError unless ``times`` fall strictly from 1 to 0."""
    if len(times) < 2 or times[0] != 1.0 or times[-1] != 0.0 or any(t >= s for s, t in pairwise(times)):
        raise ValueError("a time grid must fall strictly from 1.0 to 0.0")


def sample(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    solver: str = "sde2",
    noise: Callable[[int], Tensor] | None = None,
    observe: Callable[[int, float, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Solve the reverse equation from ``x`` at ``times[0] = 1`` to ``times[-1] = 0``.

    Args:
        field: ``F(x, t)``.
        x: standard normal noise ``(B, C, H, W)``.
        times: a grid as :func:`time_grid` makes, or the user's own.
        solver: a name in :data:`SOLVERS`.
        noise: for the stochastic solvers, ``noise(i)`` gives the standard normal of step ``i``.
        observe: called before step ``i`` with ``(i, s, x_s, F_s)``.

    Returns:
        Images in the dequantised range, about [-1, 1]. Evaluations used: steps times
        ``evaluations_per_step``.
    """
    check_grid(times)
    step, before = SOLVERS[solver], None
    for i, (s, t) in enumerate(pairwise(times)):
        now = _evaluate(field, x, s)
        if observe is not None:
            observe(i, s, x, now.F)
        x = step.step(field, x, now, t, before, noise(i) if noise and step.stochastic else None)
        before = now
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
        F = _evaluate(field, x, sigma).F
        t = torch.full((x.shape[0],), sigma, dtype=torch.float64, device=x.device)
        x = x + h * beta * (0.5 * x + score(F, x, t)) + math.sqrt(h * beta) * noise(i)
    return x
