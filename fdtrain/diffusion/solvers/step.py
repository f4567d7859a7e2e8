"""One step of a multistep solver: numbers, computed once per grid in float64 and the same for every image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Arrays of any library: exports carry this file where there is no torch.
INTERPOLATED: dict[str, Callable[[Any, Any, float], Any]] = {
    "F": lambda x, F, t: F,
    # The predicted image, x0_hat.
    "data": lambda x, F, t: alpha(t) * x - t * t * F,
}
"""What of the field ``F(x, t)`` a solver interpolates."""


def alpha(t: float) -> float:
    """``alpha_t``, to the last digit also near ``t = 1``."""
    return math.sqrt((1 - t) * (1 + t))


@dataclass(frozen=True)
class Step:
    """From ``s`` to ``t < s``: ``x_t = linear x_s + sum_j weights_j V_j + noise z``, ``V`` one of :data:`INTERPOLATED`.

    ``predictor`` weighs past evaluations, the newest (at ``s``) first. ``corrector``, where there is one, weighs those
    with the evaluation at the predicted ``x_t`` before them, and gives the ``x_t`` from which the solver goes on.
    """

    s: float
    t: float
    linear: float
    noise: float
    predictor: Sequence[float]
    corrector: Sequence[float] = ()


def prediction(form: str, s: float) -> Step:
    """From ``s`` to 0 at once: the image ``x0_hat = alpha x - s^2 F`` that is predicted at ``s``."""
    linear, weight = {"F": (alpha(s), -s * s), "data": (0.0, 1.0)}[form]
    return Step(s, 0.0, linear, 0.0, (weight,))
