"""The solvers there are, by name, each with the grid that serves it best (docs/sampling.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fdtrain.diffusion.interval import Interval
from fdtrain.diffusion.solvers import peers
from fdtrain.diffusion.solvers.multistep import ODE_DATA, ODE_F, SDE_DATA, SDE_F, Equation, Multistep
from fdtrain.diffusion.solvers.step import Step, prediction


@dataclass(frozen=True)
class Solver:
    """A maker of steps, and what a caller must know about it.

    ``form`` is what it interpolates, a name in :data:`fdtrain.diffusion.solvers.step.FORMS`; ``grid`` its default. With
    two evaluations a step, the corrected ``x_t`` is evaluated too.
    """

    steps: Callable[[Sequence[float]], list[Step]]
    form: str
    stochastic: bool
    grid: str
    evaluations_per_step: int = 1

    def steps_within(self, times: Sequence[float], interval: Interval) -> list[Step]:
        """The steps of a grid of the interval: where ``t_min`` is above 0, the last one predicts the image."""
        if interval.t_min > 0:
            return [*self.steps(times[:-1]), prediction(self.form, times[-2])]
        return self.steps(times)


def member(equation: Equation, variable: str, p: int, c: int, grid: str) -> Solver:
    """Of the family: :class:`Multistep`."""
    return Solver(Multistep(equation, variable, p, c).steps, equation.form, equation.noise is not None, grid)


SOLVERS = {
    # Ours: the best of the family found on the spectrum of images and on trained networks (docs/method.md, section 5).
    "sde": member(SDE_DATA, "tau", 2, 3, "refined"),
    "ode": member(ODE_DATA, "phi", 3, 3, "sine"),
    # F-form, as the paper has it.
    "sde1": member(SDE_F, "tau", 1, 0, "asinh"),
    "sde2": member(SDE_F, "tau", 2, 0, "asinh"),
    "ode1": member(ODE_F, "alpha", 1, 0, "angle"),
    "ode2": member(ODE_F, "alpha", 2, 0, "angle"),
    # Peers.
    "ddim": member(ODE_DATA, "phi", 1, 0, "sine"),
    "ancestral": member(SDE_DATA, "tau", 1, 0, "refined"),
    "heun": Solver(peers.heun, "velocity", False, "angle", evaluations_per_step=2),
    "heun_edm": Solver(peers.heun_edm, "data", False, "power:3", evaluations_per_step=2),
    "dpmpp2m": Solver(peers.dpmpp2m, "data", False, "sine"),
    "dpmpp2m_sde": Solver(peers.dpmpp2m_sde, "data", True, "refined"),
    "unipc2": Solver(peers.unipc2, "data", False, "sine"),
    "unipc3": Solver(peers.unipc3, "data", False, "sine"),
    "ersde2": member(peers.ER_SDE, "tan", 2, 0, "sine"),
}
DEFAULT = "ode"
"""Ahead of `sde` on images of 256 levels up to 30 evaluations, and level with it on digits (docs/performance.md)."""
