"""Averages of the weights by a power of time, and the synthesis of others from them (Karras et al. 2024, EDM2).

Such an average of exponent ``g`` at step ``T`` gives the weights of time ``t`` in [0, T] the profile
``p(t) = (g + 1) t^g / T^(g + 1)``: its memory grows with the run. It is named by its *relative length*, the standard
deviation of ``t / T`` under ``p``: 0.05 is about the last tenth of a run, and ``12^-0.5`` the plain mean of all of it.

Time is counted in steps. A run's global batch is fixed, so images seen are a multiple of them, and only ratios matter.
The weights of step ``k`` are those of the times from ``k - 1`` to ``k``: then the recursion of :func:`decay` is the
integral of the weights under ``p`` without any rounding of time, and so is every sum that :func:`fit` gives.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

SHORTEST, LONGEST = 0.001, 12**-0.5
"""Relative lengths that have a rising profile; below the first, hardly more than the last weights of a run."""


def length_of(exponent: float) -> float:
    """Relative length of a profile (EDM2, equation 123)."""
    return (exponent + 1) ** 0.5 / (exponent + 2) / (exponent + 3) ** 0.5


def exponent_of(length: float) -> float:
    """Exponent, 0 or more, of the profile of a relative length from ``SHORTEST`` to ``LONGEST`` (EDM2, algorithm 2)."""
    t = length**-2
    # The square of length_of, multiplied out: one root of it is not negative.
    return max(0.0, np.roots([1, 7, 16 - t, 12 - t]).real.max().item())


def decay(exponent: float, step: int) -> float:
    """Factor of the average at its update after ``step`` steps, from 1; the first drops what was there before
    (EDM2, equation 127)."""
    return (1 - 1 / step) ** (exponent + 1)


def inner_product(step_a: Any, exponent_a: Any, step_b: Any, exponent_b: Any) -> np.ndarray:
    """Integral over time of the product of two profiles, per step (EDM2, equation 151); arrays broadcast."""
    earlier, later = np.minimum(step_a, step_b), np.maximum(step_a, step_b)
    ends = (earlier / step_a) ** exponent_a * (earlier / step_b) ** exponent_b / later
    return (exponent_a + 1) * (exponent_b + 1) / (exponent_a + exponent_b + 1) * ends


@dataclass(frozen=True)
class Fit:
    """A profile as a sum of others: ``coefficients`` ``(n,)`` float64, which add up to 1, and the relative ``error``,
    the L2 norm of the difference over that of the profile.

    By Cauchy-Schwarz the synthesised weights differ from the tracked average by no more than this error, times the
    profile's norm, times the L2 norm over time of the weights' distance to any fixed point.
    """

    coefficients: np.ndarray
    error: float


def fit(steps: list[int], lengths: list[float], step: int, length: float) -> Fit:
    """The combination of the profiles that there are, of ``steps`` and ``lengths``, nearest in L2 to that of ``length``
    at ``step`` (EDM2, algorithm 3)."""
    T, g = np.array(steps, dtype=np.float64), np.array([exponent_of(each) for each in lengths])
    target = float(step), exponent_of(length)
    gram, right = inner_product(T[:, None], g[:, None], T, g), inner_product(T, g, *target)
    square = inner_product(*target, *target)
    norms = np.sqrt(gram.diagonal())
    # Profiles of neighbouring steps are nearly the same. Directions that rounding has decided get no coefficients.
    x = np.linalg.lstsq(gram / np.outer(norms, norms), right / norms, rcond=1e-12)[0] / norms
    # An average of equal weights must be these weights.
    x /= x.sum()
    error = 1 - 2 * x @ right / square + x @ gram @ x / square
    return Fit(x, float(np.sqrt(max(0.0, error))))
