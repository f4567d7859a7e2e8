"""YAML as configurations need it: plain values, each key once, and nothing that grows when it is read.

PyYAML's safe loader lets the last of two equal keys win, reads ``no`` and ``010`` otherwise than they are meant, and
follows aliases of aliases, of which a few lines can stand for gigabytes.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from fdtrain.credentials import masked_values
from fdtrain.errors import UserError, excerpt

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
"""The values of a document, each counted as often as aliases repeat it, and a text again for every hundred characters:
it can be shown without harm."""
MAX_DEPTH = 32
PLAIN = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}
"""What is no text though it has no quotes: as in YAML 1.1, but for yes, no, on, off, 010 (its eight), 1:30 (its ninety)
and dates, which are texts as in YAML 1.2."""
_TAG = "tag:yaml.org,2002:"


def parse(text: str) -> Any:
    """The value that a YAML document holds.

    Raises:
        UserError: it is no YAML, or has what a configuration may not have; the message is a clause with its line.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"longer than {MAX_BYTES >> 20} MiB")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        raise UserError(f"{f'line {mark.line + 1}: ' if mark else ''}{excerpt(problem)}") from error
    except RecursionError as error:
        raise UserError(f"nested deeper than {MAX_DEPTH} levels") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"line {line}: character U+{ord(text[error.position]):04X} is not admitted") from error


def read_mapping(path: str | Path, unreadable: str, holds: str) -> dict[str, Any]:
    """The mapping at the top of a YAML file. Raises UserError that begins with ``unreadable`` where it cannot be read,
    or says that it is no YAML, or must hold what it ``holds``."""
    try:
        with open(path, encoding="utf-8") as file:
            content = parse(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise UserError(f"{unreadable} {excerpt(path)} ({error.strerror}).") from error
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {excerpt(error)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold {holds}, not {type(content).__name__}.")
    return content


def flattened(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted keys."""
    flat = {}
    for key, value in content.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def shown(value: Any) -> str:
    """Any value for a message, shortened as by :func:`fdtrain.errors.excerpt`."""
    # Each text by itself: what is cut off must not hide that what stays is a credential.
    return excerpt(repr(masked_values(value, excerpt)))


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise _error(f"'{node.value}' is no {node.tag.rpartition(':')[2]}", node) from error


def _count(node: yaml.Node, counted: dict[yaml.Node, int], depth: int = 1) -> int:
    """The values of a node, each as often as aliases repeat it. Raises MarkedYAMLError: it has what is not admitted."""
    if node not in counted:
        # More than any until its own are known: an alias within it.
        counted[node] = MAX_VALUES + 1
        if depth > MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH} levels", node)
        if node.tag.removeprefix(_TAG) not in (*PLAIN, "str", "seq", "map"):
            raise _error(f"values of type {node.tag} are not admitted", node)
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise _error("a text holds a NUL character", node)
        own, parts = (1 + len(node.value) // 100, []) if isinstance(node, yaml.ScalarNode) else (1, node.value)
        if isinstance(node, yaml.MappingNode):
            _check_keys([key for key, _ in node.value])
            parts = [part for pair in node.value for part in pair]
        counted[node] = own + sum(_count(part, counted, depth + 1) for part in parts)
    if counted[node] > MAX_VALUES:
        raise _error(f"more than {MAX_VALUES:,} values, each counted as often as aliases repeat it", node)
    return counted[node]


def _check_keys(keys: list[yaml.Node]) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            raise _error("a key must be a plain text", key)
        if (key.tag, key.value) in lines:
            raise _error(f"key '{key.value}' was given in line {lines[key.tag, key.value] + 1} already", key)
        lines[key.tag, key.value] = key.start_mark.line


_Loader.yaml_implicit_resolvers = {None: [(_TAG + name, re.compile(f"({plain})$")) for name, plain in PLAIN.items()]}


def _error(problem: str, place: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
