"""Grids of times, falling from 1 to 0: by name, or the user's own.

On a truncated interval they fall from ``t_max`` to ``t_min``, and then to 0: the last step is the prediction of the
image at ``t_min``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from fdtrain.diffusion.interval import CLOSED, Interval


def _asinh(u: np.ndarray, s: float) -> np.ndarray:
    """``t = s sinh(u asinh(1/s))``: even in ``log t`` above ``s`` and in ``t`` below it."""
    return s * np.sinh(u * math.asinh(1 / s))


def _bits(scale: float) -> float:
    """Half the bits of the data beyond the first, 1 at least: 3.5 for 256 levels, 1.5 for 17 (ours, by search)."""
    return max(1.0, 0.5 * math.log2(0.5 / scale))


REFINED = 2560.0
GRIDS: dict[str, Callable[[np.ndarray, float | None, float], np.ndarray]] = {
    "uniform": lambda u, _, scale: u,
    # Even in phi, t = sin(phi).
    "angle": lambda u, _, scale: np.sin(0.5 * math.pi * u),
    "power": lambda u, rho, scale: u**rho,
    "sine": lambda u, rho, scale: np.sin(0.5 * math.pi * u ** (rho or _bits(scale))),
    "asinh": lambda u, s, scale: _asinh(u, s or scale),
    # asinh with s = k scale^2 / n for n steps: the last step shrinks as fast as the others do, and data of few levels
    # have a grid that is nearly uniform (ours, by search).
    "refined": lambda u, k, scale: _asinh(u, (k or REFINED) * scale**2 / (len(u) - 1)),
}
"""``t`` of ``u``, which falls evenly from 1 to 0, a parameter, and the finest scale of the data, ``1 / levels``."""

PARAMETERS = {"power": 3.0, "sine": None, "asinh": None, "refined": REFINED}
"""Of the grids that have one, its default; None: by the data's scale."""


def parse_grid(grid: str | Sequence[float]) -> tuple[str, float | None] | list[float]:
    """Name and parameter of a grid ``NAME`` or ``NAME:PARAMETER``, or the checked list of times.

    Raises:
        ValueError: there is no such grid; the message says what there is.
    """
    if not isinstance(grid, str):
        times = [float(t) for t in grid]
        check_falling(times)
        return times
    name, colon, text = grid.partition(":")
    if name not in GRIDS:
        raise ValueError(f"there is no grid {name!r}; there are {', '.join(GRIDS)}")
    if not colon:
        return name, PARAMETERS.get(name)
    try:
        parameter = float(text)
    except ValueError:
        parameter = math.nan
    if name not in PARAMETERS or not 0 < parameter < math.inf:
        raise ValueError(f"{grid!r}: only {', '.join(PARAMETERS)} take a parameter, a number above 0")
    return name, parameter


def time_grid(
    grid: str | Sequence[float], steps: int, scale: float = 1 / 256, interval: Interval = CLOSED
) -> list[float]:
    """``steps + 1`` falling times from 1.0 to 0.0, both exact; where truncated, from ``t_max`` by ``t_min`` to 0.

    Args:
        grid: as of :func:`parse_grid`. Times are returned as they are.
        steps: of times, one less than there are.
        scale: of the data, ``1 / levels``.
        interval: of the model.

    Raises:
        ValueError: there is no such grid, or its times are not ``steps + 1`` that fall strictly within the interval.
    """
    parsed = parse_grid(grid)
    if isinstance(parsed, tuple):
        name, parameter = parsed
        low, high = interval.t_min, interval.t_max
        return framed(lambda u: low + (high - low) * GRIDS[name](u, parameter, scale), steps, interval)
    if len(parsed) != steps + 1:
        raise ValueError(f"{len(parsed)} times are {len(parsed) - 1} steps, not {steps}")
    check_grid(parsed, interval)
    return parsed


def framed(inner: Callable[[np.ndarray], np.ndarray], steps: int, interval: Interval) -> list[float]:
    """The times of ``u`` by ``inner``, from exactly ``t_max`` to 0; where truncated, by ``t_min``.

    Raises:
        ValueError: there are too few steps, or the times do not fall.
    """
    # The last step of a truncated grid, from t_min to 0, is not one of inner.
    last = [interval.t_min, 0.0] if interval.t_min > 0 else [0.0]
    if steps < len(last):
        raise ValueError(f"a truncated interval takes {len(last)} steps or more, not {steps}")
    times = [interval.t_max, *inner(np.linspace(1.0, 0.0, steps + 2 - len(last)))[1:-1].tolist(), *last]
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
