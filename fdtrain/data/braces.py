"""Brace patterns, ``train-{000..099}.tar`` and ``{a,b}/x.tar``.

The number of names is bounded before any is made, since a list of shards may come from an untrusted source.
"""

import math
import re
from collections.abc import Iterable

from braceexpand import braceexpand

from fdtrain.data.fetch import shown
from fdtrain.errors import UserError

MAX_CHARACTERS = 10**8
"""The characters of all names together: a million names of a hundred characters."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?")


def expand(path: str, patterns: Iterable[str]) -> list[str]:
    """Every name of every pattern, in order; ``path`` is the pattern, or the file that lists them. Raises UserError: a
    brace without its other, braces within braces, or too many names."""
    names: list[str] = []
    characters = 0
    try:
        for pattern in patterns:
            # No name is longer than its pattern, but for the padding of numbers, which the pattern shows too.
            characters += max_names(pattern) * len(pattern)
            if characters > MAX_CHARACTERS:
                raise ValueError(f"stands for too many names (more than {MAX_CHARACTERS:,} characters of them)")
            names += braceexpand(pattern)
    except ValueError as error:
        raise UserError(f"{shown(path)} {error}. Correct it.") from None
    return names


def max_names(pattern: str) -> int:
    """An upper bound on the number of a pattern's names. Raises ValueError: it is no pattern."""
    unescaped = re.sub(r"\\.", "", pattern)
    if stray := re.search("[{}]", _BRACES.sub("", unescaped)):
        raise ValueError(f"has a '{stray[0]}' without its other, or braces within braces")
    return math.prod(map(_max_choices, _BRACES.findall(unescaped)))


def _max_choices(inside: str) -> int:
    """Of what stands between two braces."""
    if numbers := _NUMBERS.fullmatch(inside):
        return abs(int(numbers[2]) - int(numbers[1])) + 1
    # Letters: {a..z}.
    return max(inside.count(",") + 1, 52 if re.match(r"[A-Za-z]\.\.[A-Za-z]", inside) else 1)
