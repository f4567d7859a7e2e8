"""All named grids: those of :mod:`fdtrain.diffusion.solvers.grids`, which exported samplers carry without torch, and
those of published samplers, even in the time of a formulation's own clock or in EDM's powers of ``sigma``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fdtrain.diffusion.clocks import CLOCKS
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.process import alpha
from fdtrain.diffusion.solvers import grids


class Coordinate(Protocol):
    """What a grid is even in: it rises with ``t``."""

    def cdf(self, t: Tensor) -> Tensor: ...

    def quantile(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Karras:
    """``sigma^(1/7)``, ``sigma = t / alpha`` (Karras et al. 2022, equation 5)."""

    rho: float = 7.0

    def cdf(self, t: Tensor) -> Tensor:
        return (t / alpha(t)) ** (1 / self.rho)

    def quantile(self, u: Tensor) -> Tensor:
        sigma = u**self.rho
        return sigma / torch.sqrt(1 + sigma * sigma)


PUBLISHED: dict[str, Coordinate] = {**CLOCKS, "karras": Karras()}
NAMES = (*grids.GRIDS, *PUBLISHED)


def parse_grid(grid: str | Sequence[float]) -> tuple[str, float | None] | list[float]:
    """As :func:`fdtrain.diffusion.solvers.grids.parse_grid`, with published grids too."""
    if isinstance(grid, str) and grid.partition(":")[0] not in grids.GRIDS:
        if grid not in PUBLISHED:
            raise ValueError(f"there is no grid {grid!r}; there are {', '.join(NAMES)}")
        return grid, None
    return grids.parse_grid(grid)


def time_grid(
    grid: str | Sequence[float], steps: int, scale: float = 1 / 256, interval: Interval = CLOSED
) -> list[float]:
    """As :func:`fdtrain.diffusion.solvers.grids.time_grid`, with published grids too.

    Raises:
        ValueError: there is no such grid, it is infinite at an end of the interval, or its times are not ``steps + 1``
            that fall strictly within the interval.
    """
    parse_grid(grid)
    if not isinstance(grid, str) or grid not in PUBLISHED:
        return grids.time_grid(grid, steps, scale, interval)
    coordinate = PUBLISHED[grid]
    ends = torch.tensor([interval.t_min, interval.t_max], dtype=torch.float64)
    low, high = coordinate.cdf(ends)
    for t, end in zip(ends, (low, high), strict=True):
        if not torch.isfinite(end):
            raise ValueError(f"{grid!r} is infinite at t = {t:g}, where this model begins or ends; take another grid")

    def inner(u: np.ndarray) -> np.ndarray:
        return coordinate.quantile(low + (high - low) * torch.from_numpy(u)).numpy()

    return grids.framed(inner, steps, interval)
