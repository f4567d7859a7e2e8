"""Brace patterns, ``train-{000..099}.tar`` and ``{a,b}/x.tar``.

The number of names is bounded before any is made, since a list of shards may come from an untrusted source.
"""

import re
from collections.abc import Iterable

from braceexpand import braceexpand

from fdtrain.errors import UserError

MAX_CHARACTERS = 10**8
"""The characters of all names together: a million names of a hundred characters."""
MAX_DEPTH = 8
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?\d{1,18})?\}")
_LONG_RANGE = re.compile(r"-?\d{19,}\.\.|\.\.-?\d{19,}")


def expand(patterns: Iterable[str]) -> list[str]:
    """Every name of every pattern, in order.

    Raises:
        UserError: unbalanced braces, or too many names; the message is a clause.
    """
    names: list[str] = []
    characters = 0
    for pattern in patterns:
        # No name is longer than its pattern, but for the padding of numbers, which the pattern shows too.
        characters += max_names(pattern) * len(pattern)
        if characters > MAX_CHARACTERS:
            raise UserError(f"stands for too many names (more than {MAX_CHARACTERS:,} characters of them)")
        names += braceexpand(pattern)
    return names


def max_names(pattern: str) -> int:
    """An upper bound on the number of a pattern's names. It is exact unless braces are nested.

    Raises:
        UserError: unbalanced braces, braces within braces too often, or a range beyond 18 digits.
    """
    if _LONG_RANGE.search(pattern):
        raise UserError("has a range of too large numbers")
    names = 1
    for first, last in _RANGE.findall(pattern):
        names *= abs(int(last) - int(first)) + 1
    alternatives: list[int] = []
    for character in re.sub(r"\\.", "", pattern):
        if character == "{":
            alternatives.append(1)
            if len(alternatives) > MAX_DEPTH:
                raise UserError(f"has braces within braces deeper than {MAX_DEPTH}")
        elif character == "}":
            if not alternatives:
                raise UserError("has a '}' without a '{'")
            names *= alternatives.pop()
        elif character == "," and alternatives:
            alternatives[-1] += 1
    if alternatives:
        raise UserError("has a '{' without a '}'")
    # Letters: {a..z}.
    return names * 52 ** len(re.findall(r"\{[A-Za-z]\.\.[A-Za-z]", pattern))
