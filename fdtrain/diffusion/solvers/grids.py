"""Grids of times, falling from 1 to 0: even in a coordinate that rises with ``t``, or the user's own.

On a truncated interval they fall from ``t_max`` to ``t_min``, and then to 0: the last step is the prediction of the
image at ``t_min``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from fdtrain.diffusion.interval import CLOSED, Interval


class Coordinate(Protocol):
    """What a grid is even in: it rises with ``t``."""

    def cdf(self, t: np.ndarray) -> np.ndarray: ...

    def quantile(self, u: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class TwoEnded:
    """``w = asinh(t / a) - asinh(alpha / b)``: log-uniform in ``t / alpha`` from ``a`` to ``1 / b``, finite at 0 and 1.

    Ours: the log-SNR grid of DPM-Solver++, with both ends of the interval.
    """

    a: float
    b: float

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return np.arcsinh(t / self.a) - np.arcsinh(np.sqrt((1 - t) * (1 + t)) / self.b)

    def quantile(self, u: np.ndarray) -> np.ndarray:
        # With y = asinh(alpha / b), a^2 sinh^2(y + u) + b^2 sinh^2(y) = 1 is quadratic in exp(2y).
        a2, b2 = self.a**2, self.b**2
        half = 1 + (a2 + b2) / 2
        first, last = (a2 * np.exp(2 * u) + b2) / 2, (a2 * np.exp(-2 * u) + b2) / 2
        y = 0.5 * np.log((half + np.sqrt(half * half - first * last)) / first)
        t, alpha = self.a * np.sinh(y + u), self.b * np.sinh(y)
        return t / np.hypot(t, alpha)


@dataclass(frozen=True)
class Karras:
    """``sigma^(1/7)``, ``sigma = t / alpha`` (Karras et al. 2022, equation 5)."""

    rho: float = 7.0

    def cdf(self, t: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return (t / np.sqrt((1 - t) * (1 + t))) ** (1 / self.rho)

    def quantile(self, u: np.ndarray) -> np.ndarray:
        sigma = u**self.rho
        return sigma / np.hypot(1, sigma)


GRID = "two_ended"
"""The grid of all solvers: :class:`TwoEnded`, its ends by :func:`two_ended` or given, as ``two_ended:A,B``."""
PUBLISHED: dict[str, Coordinate] = {"karras": Karras()}
"""Grids of published samplers; with torch, also those that are even in the time of a published process's clock."""
ENDS = (1e-6, 1e6)
"""Of the parameters that a user may give: wide enough for all data, and finite in every formula."""


def two_ended(steps: int, levels: int, dims: int) -> TwoEnded:
    """The finest scale that so many steps resolve, and the largest deviation of images of ``dims`` numbers.

    ``a = 15 / (levels steps)`` and ``1 / b = (0.3 + 1 / steps) sqrt(dims)``: ours, by search on the spectrum of
    images, an exact mixture and trained networks (docs/method.md, section 5).
    """
    return TwoEnded(15 / (levels * steps), 1 / ((0.3 + 1 / steps) * math.sqrt(dims)))


def parse_grid(grid: str | Sequence[float]) -> TwoEnded | str | list[float]:
    """The two-ended grid with given ends, the name of a grid, or the checked list of times.

    Raises:
        ValueError: there is no such grid; the message says what there is.
    """
    if not isinstance(grid, str):
        times = [float(t) for t in grid]
        check_falling(times)
        return times
    name, colon, text = grid.partition(":")
    if name not in (GRID, *PUBLISHED):
        raise ValueError(
            f"there is no grid {name!r}; take {GRID}, which serves every solver, or {', '.join(PUBLISHED)}"
        )
    if not colon:
        return name
    try:
        a, b = (float(word) for word in text.split(","))
    except ValueError:
        a = b = math.nan
    if name != GRID or not (ENDS[0] <= a <= ENDS[1] and ENDS[0] <= b <= ENDS[1]):
        raise ValueError(
            f"{grid!r}: only {GRID} takes parameters, as {GRID}:0.005,0.07, from {ENDS[0]:g} to {ENDS[1]:g}"
        )
    return TwoEnded(a, b)


def time_grid(
    grid: str | Sequence[float], steps: int, levels: int = 256, dims: int = 3072, interval: Interval = CLOSED
) -> list[float]:
    """``steps + 1`` falling times from 1.0 to 0.0, both exact; where truncated, from ``t_max`` by ``t_min`` to 0.

    Args:
        grid: as of :func:`parse_grid`. Times are returned as they are.
        steps: of times, one less than there are.
        levels: of the data, from which its finest scale follows.
        dims: numbers of an image, from which its largest deviation follows.
        interval: of the model.

    Raises:
        ValueError: there is no such grid, it is infinite at an end of the interval, or its times are not ``steps + 1``
            that fall strictly within the interval.
    """
    parsed = parse_grid(grid)
    if isinstance(parsed, list):
        if len(parsed) != steps + 1:
            raise ValueError(f"{len(parsed)} times are {len(parsed) - 1} steps, not {steps}")
        check_grid(parsed, interval)
        return parsed
    # The last step of a truncated grid, from t_min to 0, is not one of the coordinate's.
    last = [interval.t_min, 0.0] if interval.t_min > 0 else [0.0]
    if steps < len(last):
        raise ValueError(f"a truncated interval takes {len(last)} steps or more, not {steps}")
    even = steps + 1 - len(last)
    if parsed == GRID:
        parsed = two_ended(even, levels, dims)
    coordinate = PUBLISHED[parsed] if isinstance(parsed, str) else parsed
    low, high = coordinate.cdf(np.array([interval.t_min, interval.t_max]))
    for t, end in ((interval.t_min, low), (interval.t_max, high)):
        if not math.isfinite(end):
            raise ValueError(f"{grid!r} is infinite at t = {t:g}, where this model begins or ends; take another grid")
    u = np.linspace(high, low, even + 1)
    times = [interval.t_max, *coordinate.quantile(u)[1:-1].tolist(), *last]
    check_grid(times, interval)
    return times


def check_falling(times: Sequence[float]) -> None:
    """Raise ValueError unless ``times`` fall strictly within [0, 1] to 0."""
    falling = len(times) > 1 and all(t < s for s, t in pairwise(times))
    if not falling or times[0] > 1.0 or times[-1] != 0.0:
        raise ValueError("a time grid must fall strictly from 1.0 to 0.0")


def check_grid(times: Sequence[float], interval: Interval = CLOSED) -> None:
    """Raise ValueError unless ``times`` fall strictly from 1 to 0, or from ``t_max`` within the interval and to 0."""
    check_falling(times)
    if interval == CLOSED and times[0] != 1.0:
        raise ValueError("a time grid must fall strictly from 1.0 to 0.0")
    if times[0] != interval.t_max or times[-2] < interval.t_min:
        raise ValueError(
            f"the model is of the times [{interval.t_min:.6g}, {interval.t_max:.6g}]: a time grid must fall from "
            f"{interval.t_max!r} to {interval.t_min!r} at most, and then to 0"
        )
