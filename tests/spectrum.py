"""Gaussian data with the spectrum of images, and what a solver makes of it, exactly (docs/method.md, section 5); the
usual truncated sampler."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fdtrain.diffusion.predictors import Field, score
from fdtrain.diffusion.process import alpha
from fdtrain.diffusion.solvers import Solver, sample

DEVIATIONS = torch.logspace(math.log10(15), math.log10(0.005), 16, dtype=torch.float64)
"""Standard deviations of principal directions, from what whole images differ by to the quantisation noise."""


def field(x: Tensor, t: Tensor) -> Tensor:
    """``F*`` of centred Gaussians: ``alpha (1 - v) x / (alpha^2 v + t^2)``."""
    a, variance = alpha(t)[:, None], DEVIATIONS**2
    return a * (1 - variance) * x / (a * a * variance + (t * t)[:, None])


def variances(field: Field, solver: Solver, times: list[float]) -> Tensor:
    """Of the samples of a solver that is linear in ``x`` and noise: the sum of the squared responses to each."""
    x = torch.zeros(len(times) if solver.stochastic else 1, len(DEVIATIONS), dtype=torch.float64)
    x[0] = 1

    def noise(step: int) -> Tensor:
        z = torch.zeros_like(x)
        z[step + 1] = 1
        return z

    return sample(field, x, times, solver, noise).square().sum(0)


def mean_kl(solver: Solver, times: list[float]) -> float:
    """KL(model || data) in nats, the mean over dimensions."""
    ratio = variances(field, solver, times) / DEVIATIONS**2
    return (0.5 * (ratio - 1 - ratio.log())).mean().item()


def euler_maruyama(field: Field, x: Tensor, steps: int, noise: Callable[[int], Tensor], t_min: float = 1e-3) -> Tensor:
    """Euler-Maruyama on the linear-beta VP-SDE (Song et al. 2021).

    Uniform steps in that process's time from 1 to ``t_min``, beta from 0.1 to 20. It starts from a
    standard normal, which its ``x_1`` is not exactly, and ends on images that still carry noise.
    """
    taus = np.linspace(1.0, t_min, steps + 1)
    for i, (now, then) in enumerate(pairwise(taus)):
        h, beta = now - then, 0.1 + 19.9 * now
        # log alpha^2 = -Int beta: sigma^2 = 1 - alpha^2 by expm1.
        sigma = math.sqrt(-math.expm1(-0.1 * now - 9.95 * now * now))
        t = torch.full((x.shape[0],), sigma, dtype=torch.float64)
        F = field(x, t)
        x = x + h * beta * (0.5 * x + score(F, x, t)) + math.sqrt(h * beta) * noise(i)
    return x
