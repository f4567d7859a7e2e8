"""Solvers of the reverse equations on the closed interval: from noise at ``t = 1`` to an image at ``t = 0``."""

from dataclasses import dataclass

import numpy as np
import torch

from fdtrain.diffusion.clocks import CLOCKS, Clock
from fdtrain.diffusion.solvers.grids import GRID, PUBLISHED, check_falling, check_grid, parse_grid, time_grid
from fdtrain.diffusion.solvers.named import DEFAULT, SOLVERS, Solver
from fdtrain.diffusion.solvers.sampling import sample

__all__ = [
    "DEFAULT",
    "GRID",
    "PUBLISHED",
    "SOLVERS",
    "Solver",
    "check_falling",
    "check_grid",
    "parse_grid",
    "sample",
    "time_grid",
]


@dataclass(frozen=True)
class ClockTime:
    """The time of a published process, for grids that are even in it."""

    clock: Clock

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return self.clock.cdf(torch.from_numpy(t)).numpy()

    def quantile(self, u: np.ndarray) -> np.ndarray:
        return self.clock.quantile(torch.from_numpy(u)).numpy()


# Here, because exported samplers have grids.py without torch.
PUBLISHED.update({name: ClockTime(clock) for name, clock in CLOCKS.items()})
