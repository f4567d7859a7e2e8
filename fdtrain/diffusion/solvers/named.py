"""The solvers there are, by name (docs/sampling.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fdtrain.diffusion.interval import Interval
from fdtrain.diffusion.solvers.multistep import (
    ODE_DATA,
    ODE_F,
    SDE_DATA,
    SDE_F,
    Equation,
    Variable,
    multistep,
    scaled_angle,
)
from fdtrain.diffusion.solvers.published import dpmpp2m, dpmpp2m_sde, heun_edm, unipc2
from fdtrain.diffusion.solvers.step import Step, prediction


@dataclass(frozen=True)
class Solver:
    """A maker of steps, and what a caller must know about it.

    ``form`` is what it interpolates, a name in :data:`fdtrain.diffusion.solvers.step.INTERPOLATED`.
    """

    steps: Callable[[Sequence[float]], list[Step]]
    form: str
    stochastic: bool
    evaluations_per_step: int = 1

    def steps_within(self, times: Sequence[float], interval: Interval) -> list[Step]:
        """The steps of a grid of the interval: where ``t_min`` is above 0, the last one predicts the image."""
        if interval.t_min > 0:
            return [*self.steps(times[:-1]), prediction(self.form, times[-2])]
        return self.steps(times)


def member(equation: Equation, variable: Variable, p: int, c: int = 0) -> Solver:
    """Of the family: :func:`multistep`."""
    return Solver(partial(multistep, equation, variable, p, c), equation.form, equation.noise is not None)


SOLVERS = {
    # Ours: the best of the family found on the spectrum of images, an exact mixture and trained networks
    # (docs/method.md, section 5).
    "sde": member(SDE_DATA, scaled_angle, 2, 2),
    "ode": member(ODE_DATA, scaled_angle, 2, 2),
    # F-form, as the paper has it: linear in tau, and in alpha.
    "sde1": member(SDE_F, np.sin, 1),
    "sde2": member(SDE_F, np.sin, 2),
    "ode1": member(ODE_F, np.cos, 1),
    "ode2": member(ODE_F, np.cos, 2),
    # Peers.
    "ddim": member(ODE_DATA, np.sin, 1),
    "ancestral": member(SDE_DATA, np.sin, 1),
    "heun_edm": Solver(heun_edm, "data", False, evaluations_per_step=2),
    "dpmpp2m": Solver(dpmpp2m, "data", False),
    "dpmpp2m_sde": Solver(dpmpp2m_sde, "data", True),
    "unipc2": Solver(unipc2, "data", False),
}
DEFAULT = "ode"
