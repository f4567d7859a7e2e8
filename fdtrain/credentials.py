"""Credentials in URLs: masked in whatever is printed or stored, and taken from the environment when they are used.

A URL may carry them as ``scheme://user:password@host``, in its query (``?sig=...``, ``?X-Amz-Signature=...``), or
anywhere as ``${NAME}``, which stands for an environment variable. Only the reader of a data set expands such a
reference, so what is stored of a configuration still holds the reference.
"""

import os
import re
from collections.abc import Callable
from typing import Any

MASK = "***"
_SCHEME = "[a-z][a-z0-9+.-]{0,30}:/+"
_URL = re.compile(rf"""{_SCHEME}[^\s"'<>]*""", re.IGNORECASE)
_USER = re.compile(
    rf"""({_SCHEME})
    (?: ([^\s/?#"'<>]*)@
      | ([^\s/?#:@\[]*:(?!\d+(?:[/?#"'\s]|$)).*)@ )  # a password that is not encoded may hold any character""",
    re.IGNORECASE | re.VERBOSE,
)
_USER_IN_PATH = re.compile(r"(?<=[^/:]/)[^/?#:@\s]+:[^/?#@\s]+@")
_QUERY = re.compile(rf"""({_SCHEME}[^\s"'<>?#]*[?#])([^\s"'<>]+)""", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_expanded: dict[str, str] = {}
"""The values to which this process has expanded references, with the references."""


def masked(text: str) -> str:
    """``text`` with the credentials of every URL in it replaced: user and password, the query, expanded references."""
    text = _URL.sub(lambda url: _USER_IN_PATH.sub(f"{MASK}@", _with_references(url[0])), text)
    text = _USER.sub(lambda found: f"{found[1]}{_masked_part(found[2] or found[3] or '', ':')}@", text)
    return _QUERY.sub(lambda found: f"{found[1]}{_masked_part(found[2], '&')}", text)


def masked_values(content: Any, mask: Callable[[str], str] = masked) -> Any:
    """Lists and mappings with every text in them masked."""
    if isinstance(content, dict):
        return {key: masked_values(value, mask) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_values(value, mask) for value in content]
    return mask(content) if isinstance(content, str) else content


def expand_references(place: str) -> str:
    """``place`` with every ``${NAME}`` replaced by the environment's value.

    Raises:
        KeyError: the environment has no variable of this name.
    """

    def value(match: re.Match[str]) -> str:
        expanded = os.environ[match[1]]
        if expanded:
            _expanded[expanded] = match[0]
        return expanded

    return _REFERENCE.sub(value, place)


def _with_references(url: str) -> str:
    for value in sorted(_expanded, key=len, reverse=True):
        url = url.replace(value, _expanded[value])
    return url


def _masked_part(part: str, separator: str) -> str:
    """A part of a URL, masked unless all its values are references."""
    values = [value.rpartition("=")[2] for value in part.split(separator)]
    return part if not part or all(map(_REFERENCE.fullmatch, values)) else MASK
