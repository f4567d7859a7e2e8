"""The multistep family on the closed interval (docs/method.md, sections 5 and 6).

A step from ``s`` to ``t < s`` is exact except for one function ``V`` that is interpolated. With ``tau = sin(phi)``:

    x_t = linear x_s + Int_{phi_t}^{phi_s} weight V dphi + noise z

and what ``linear``, ``weight`` and ``noise`` are is an :class:`Equation`. ``V`` is the polynomial through ``p`` past
evaluations (predictor) or through ``c`` with the one at the predicted ``x_t`` (corrector), in a chosen variable.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from fdtrain.diffusion.solvers.step import Step, alpha

Variable = Callable[[np.ndarray], np.ndarray]
"""A function of ``phi`` that rises or falls, in which ``V`` is a polynomial."""


def scaled_angle(phi: np.ndarray) -> np.ndarray:
    """``atan(tan(phi) / 6)``: the angle of data of deviation 6, whose ``D`` is a cosine of it on the ODE's path.

    About ``t / alpha``, which is infinite at ``t = 1``, where that is below 6, and about ``alpha`` at ``t = 1``.
    """
    return np.arctan2(np.sin(phi), 6 * np.cos(phi))


NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Gauss-Legendre quadrature on [-1, 1]. The integrands are analytic: its error is that of rounding."""


@dataclass(frozen=True)
class Equation:
    """A reverse equation whose linear part is solved exactly.

    ``form`` is a name in :data:`fdtrain.diffusion.solvers.step.INTERPOLATED`; ``linear(s, t)``, ``noise(s, t)``
    (None: an ODE) and ``weight(t, phi)`` are as in the module's docstring. In data form the weight concentrates at
    ``t`` as ``t -> 0``: the step to 0 is ``V`` extrapolated to 0.
    """

    form: str
    linear: Callable[[float, float], float]
    weight: Callable[[float, np.ndarray], np.ndarray]
    noise: Callable[[float, float], float] | None = None


def _spread(s: float, t: float) -> float:
    """``sqrt(s^2 - t^2)``."""
    return math.sqrt((s - t) * (s + t))


# x_t = (alpha_s / alpha_t) x_s - (1 / alpha_t) Int F dy + sqrt(1 - (alpha_s / alpha_t)^2) z,   y = tau^2
SDE_F = Equation(
    "F",
    linear=lambda s, t: alpha(s) / alpha(t),
    weight=lambda t, phi: -2 * np.sin(phi) * np.cos(phi) / alpha(t),
    noise=lambda s, t: _spread(s, t) / alpha(t),
)
# x_t = x_s - Int sin(phi) F dphi
ODE_F = Equation(
    "F",
    linear=lambda s, t: 1.0,
    weight=lambda t, phi: -np.sin(phi),
)
# x_t = (alpha_s / alpha_t) (t^2 / s^2) x_s + (t^2 / alpha_t) Int D 2 tau^-3 dtau + t sqrt(s^2 - t^2) / (s alpha_t) z
SDE_DATA = Equation(
    "data",
    linear=lambda s, t: alpha(s) / alpha(t) * (t / s) ** 2,
    weight=lambda t, phi: t * t / alpha(t) * 2 * np.cos(phi) / np.sin(phi) ** 3,
    noise=lambda s, t: t * _spread(s, t) / (s * alpha(t)),
)
# x_t = (t / s) x_s + t Int D / sin^2(phi) dphi
ODE_DATA = Equation(
    "data",
    linear=lambda s, t: t / s,
    weight=lambda t, phi: t / np.sin(phi) ** 2,
)


def multistep(equation: Equation, variable: Variable, p: int, c: int, times: Sequence[float]) -> list[Step]:
    """The steps of a grid that falls from 1 to 0, by a member of the family: ``p`` evaluations predict, ``c`` correct
    (0: no corrector; 1: the new one alone).

    The first steps take as many as there are. The last one, to ``t = 0``, evaluates nothing and is not corrected.
    """
    steps = []
    for i, (s, t) in enumerate(pairwise(times)):
        # The times of all evaluations, the newest first.
        past = times[i::-1]
        predictor = integrals(equation, variable, past[:p], s, t)
        corrector = integrals(equation, variable, [t, *past][:c], s, t) if c and t > 0 else ()
        noise = equation.noise(s, t) if equation.noise else 0.0
        steps.append(Step(s, t, equation.linear(s, t), noise, predictor, corrector))
    return steps


def integrals(equation: Equation, variable: Variable, nodes: Sequence[float], s: float, t: float) -> list[float]:
    """``Int_{phi_t}^{phi_s} weight L_j dphi`` for the Lagrange polynomials ``L_j`` of evaluations at ``nodes``."""
    if t == 0 and equation.form == "data":
        return _lagrange(variable, nodes, np.zeros(1))[:, 0].tolist()
    low, high = math.asin(t), math.asin(s)
    if equation.form == "data":
        # The weight is about t / phi^2 or t^2 / phi^3: even in log(phi) all of it is seen, however small t / s.
        half = 0.5 * math.log(high / low)
        phi = low * np.exp(half * (NODES + 1))
        measure = half * phi * WEIGHTS
    else:
        half = 0.5 * (high - low)
        phi = low + half * (NODES + 1)
        measure = half * WEIGHTS
    return (_lagrange(variable, nodes, phi) @ (measure * equation.weight(t, phi))).tolist()


def _lagrange(variable: Variable, nodes: Sequence[float], phi: np.ndarray) -> np.ndarray:
    """Lagrange polynomials through ``nodes`` (times), at ``phi``: ``(nodes, phi)``."""
    u, at = variable(phi), variable(np.arcsin(np.asarray(nodes)))
    basis = np.ones((len(at), len(u)))
    for j, k in permutations(range(len(at)), 2):
        basis[j] *= (u - at[k]) / (at[j] - at[k])
    return basis
