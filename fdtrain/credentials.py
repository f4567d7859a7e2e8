"""Credentials in URLs: masked in whatever is printed or stored, and taken from the environment when they are used.

A URL may carry them as ``scheme://user:password@host``, in its query (``?sig=...``, ``?X-Amz-Signature=...``), or
anywhere as ``${NAME}``, which stands for an environment variable. Only the reader of a data set expands such a
reference, so what is stored of a configuration still holds the reference.
"""

import os
import re
from typing import Any

MASK = "***"
_URL = re.compile(
    r"""[a-z][a-z0-9+.-]{0,30}:/+
    (?: [^\s/?#@"'<>]*@                              # user and password
      | [^\s/?#:@\[]*:(?!\d+(?:[/?#"'\s]|$)).*@ )?  # a password that is not encoded may hold any character
    [^\s"'<>]*""",
    re.IGNORECASE | re.VERBOSE,
)
_USER = re.compile(r"[^/?#:@\s]+:[^/?#@\s]+@")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_expanded: dict[str, str] = {}
"""The values to which this process has expanded references, with the references."""


def masked(text: str) -> str:
    """``text`` with the credentials of every URL in it replaced: user and password, the query, expanded references."""
    return _URL.sub(lambda match: _masked_url(match[0]), text)


def masked_values(content: Any) -> Any:
    """Lists and mappings with every text in them masked."""
    if isinstance(content, dict):
        return {key: masked_values(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_values(value) for value in content]
    return masked(content) if isinstance(content, str) else content


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


def _masked_url(url: str) -> str:
    for value in sorted(_expanded, key=len, reverse=True):
        url = url.replace(value, _expanded[value])
    start = re.search(r":/+", url)
    if start is None:
        return url
    scheme, rest = url[: start.end()], url[start.end() :]
    end = _end_of_user(rest)
    user, place = rest[:end], rest[end:]
    path, mark, query = (*re.split(r"([?#])", place, maxsplit=1), "", "")[:3]
    # The path may hold another URL.
    path = _USER.sub(f"{MASK}@", path)
    return f"{scheme}{_masked_part(user, ':')}{path}{mark}{_masked_part(query, '&')}"


def _end_of_user(rest: str) -> int:
    """Where the ``@`` lies that ends the user in what follows ``scheme://``; 0 if there is none before the path."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rindex("@")
    _, colon, port = authority.partition(":")
    odd_password = "@" in rest and colon and not port.isdigit() and not authority.startswith("[")
    return rest.rindex("@") if odd_password else 0


def _masked_part(part: str, separator: str) -> str:
    """A part of a URL, masked unless all its values are references."""
    values = [value.rpartition("=")[2] for value in part.split(separator)]
    return part if not part or all(map(_REFERENCE.fullmatch, values)) else MASK
