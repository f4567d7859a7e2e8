"""Grids of times, falling from 1 to 0: by name, or the user's own."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np


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
        check_grid(times)
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


def time_grid(grid: str | Sequence[float], steps: int, scale: float = 1 / 256) -> list[float]:
    """``steps + 1`` falling times from 1.0 to 0.0, both exact.

    Args:
        grid: as of :func:`parse_grid`. Times are returned as they are.
        steps: of times, one less than there are.
        scale: of the data, ``1 / levels``.

    Raises:
        ValueError: there is no such grid, or its times are not ``steps + 1`` that fall strictly.
    """
    parsed = parse_grid(grid)
    if isinstance(parsed, tuple):
        name, parameter = parsed
        inner = GRIDS[name](np.linspace(1.0, 0.0, steps + 1), parameter, scale)[1:-1]
        parsed = [1.0, *inner.tolist(), 0.0]
        check_grid(parsed)
    elif len(parsed) != steps + 1:
        raise ValueError(f"{len(parsed)} times are {len(parsed) - 1} steps, not {steps}")
    return parsed


def check_grid(times: Sequence[float]) -> None:
    """Raise ValueError unless ``times`` fall strictly from 1 to 0."""
    if len(times) < 2 or times[0] != 1.0 or times[-1] != 0.0 or not all(t < s for s, t in pairwise(times)):
        raise ValueError("a time grid must fall strictly from 1.0 to 0.0")
