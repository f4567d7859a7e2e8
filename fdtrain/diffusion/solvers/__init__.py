"""Solvers of the reverse equations on the closed interval: from noise at ``t = 1`` to an image at ``t = 0``."""

from fdtrain.diffusion.solvers.grids import GRIDS, check_falling, check_grid
from fdtrain.diffusion.solvers.named import DEFAULT, SOLVERS, Solver
from fdtrain.diffusion.solvers.published_grids import NAMES, parse_grid, time_grid
from fdtrain.diffusion.solvers.sampling import euler_maruyama, sample

__all__ = [
    "DEFAULT",
    "GRIDS",
    "NAMES",
    "SOLVERS",
    "Solver",
    "check_falling",
    "check_grid",
    "euler_maruyama",
    "parse_grid",
    "sample",
    "time_grid",
]
