"""The times of a formulation, numbers alone: solvers, and what is exported of them, need no torch for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The times of a formulation, a part of [0, 1]."""

    t_min: float = 0.0
    t_max: float = 1.0


CLOSED = Interval()
"""All of [0, 1], both ends included: nothing is truncated."""
