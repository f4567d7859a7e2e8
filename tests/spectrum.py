"""Gaussian data with the spectrum of images, and what a solver makes of it, exactly (docs/method.md, section 5)."""

import math

import torch
from torch import Tensor

from fdtrain.diffusion.predictors import Field
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
