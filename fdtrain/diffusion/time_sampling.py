"""Which times a training batch sees: strata over the global batch, pushed through a density of ``t``.

A time is made in two steps: ``u`` in [0, 1), one for every image of the *global* batch (across ranks
and accumulation steps), then ``t = density.quantile(u)``. All of it in float64; these are B numbers.
Source: docs/method.md, section 4; the lattice is that of VDM (Kingma et al. 2021, appendix I.1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Each takes (stratum, own, shared, global_batch) as described in draw_uniform.
DRAWS: dict[str, Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]] = {
    # One image per stratum: the variance left is the one within strata.
    "stratified": lambda stratum, own, shared, batch: (stratum + own) / batch,
    # One shift for the whole batch.
    "lattice": lambda stratum, own, shared, batch: (stratum / batch + shared) % 1.0,
    # No strata: for comparison.
    "iid": lambda stratum, own, shared, batch: own,
}


def draw_uniform(kind: str, stratum: np.ndarray, own: np.ndarray, shared: float, global_batch: int) -> np.ndarray:
    """``u`` in [0, 1) for some images of a global batch.

    Args:
        kind: ``stratified``, ``lattice`` or ``iid``.
        stratum: integers ``(n,)`` out of ``range(global_batch)``, these images' part of a permutation of it.
        own: uniform draws ``(n,)``, one per image.
        shared: one uniform draw, the same for the whole global batch.
        global_batch: images of one optimiser step over all ranks and accumulation steps.
    """
    return DRAWS[kind](stratum, own, shared, global_batch)


@dataclass(frozen=True)
class Uniform:
    """``q(t) = 1`` on [0, 1]."""

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def cdf(self, t: Tensor) -> Tensor:
        return t

    def pdf(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Asinh:
    """``q(t) = 1 / (asinh(1/s) sqrt(t^2 + s^2))`` on [0, 1]: log-uniform above ``s``, uniform below it."""

    scale: float = 1 / 256

    @property
    def _range(self) -> float:
        return math.asinh(1 / self.scale)

    def quantile(self, u: Tensor) -> Tensor:
        # s sinh(u asinh(1/s)), with s written as 1 / sinh(asinh(1/s)) so that u = 1 gives t = 1 to the last bit.
        end = torch.as_tensor(self._range, dtype=u.dtype)
        return torch.sinh(u * end) / torch.sinh(end)

    def cdf(self, t: Tensor) -> Tensor:
        return torch.asinh(t / self.scale) / self._range

    def pdf(self, t: Tensor) -> Tensor:
        return 1 / (self._range * torch.sqrt(t * t + self.scale * self.scale))


TimeDensity = Uniform | Asinh
"""Density of ``t`` on the closed interval, with its exact inverse distribution function."""


DENSITIES: dict[str, Callable[[float], TimeDensity]] = {"uniform": lambda scale: Uniform(), "asinh": Asinh}
"""By name, each made with the ``s`` of ``asinh``."""


def time_density(kind: str, scale: float) -> TimeDensity:
    """The density named ``kind`` in :data:`DENSITIES`."""
    return DENSITIES[kind](scale)
