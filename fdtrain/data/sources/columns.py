"""Columns of tables: which contain images and labels, and the names of the labels."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrain.data.sources.image_column import ARRAYS, holds_arrays, holds_bytes
from fdtrain.data.sources.source import MAX_CLASSES, BadSample, numbered
from fdtrain.data.sources.tables import guarded, opened
from fdtrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_NAMES = ("label", "labels")


def features(schema: "pa.Schema", path: Path) -> dict[str, dict[str, Any]]:
    """The hub's description of the columns, if there is one.

    Raises:
        UserError: it is not in the format of the hub's library.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        content = json.loads(text)
        columns = content.get("info", {}).get("features", {})
        if columns is None:
            return {}
        for name, feature in columns.items():
            # Lists and dicts of features are columns of lists and structures.
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                _check_names(feature.get("names"), f"{path}, column '{name}'")
        return {name: feature for name, feature in columns.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: its description of columns ('huggingface') is not of the hub's form ({error}). Fetch it again."
        ) from error


def _check_names(names: Any, where: str) -> None:
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MAX_CLASSES:
        raise UserError(f"{where}: class names that are not a list of texts. Fetch it again.")
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two classes of one name. Correct the file.")


def choose(
    schemas: Mapping[Path, "pa.Schema"],
    described: Mapping[Path, dict[str, dict[str, Any]]],
    image: str | None,
    label: str | None,
) -> tuple[str, str | None]:
    """The columns of images and labels, the same in all files.

    Raises:
        UserError: a file lacks one, has several to choose from, or has them in other columns than the first; images
            that are no bytes.
    """
    import pyarrow as pa

    first = next(iter(schemas))
    chosen = _choose_in(first, schemas[first], described[first], image, label)
    for path, schema in schemas.items():
        columns = _choose_in(path, schema, described[path], image, label)
        if columns != chosen:
            raise UserError(
                f"{first} has images and labels in columns {chosen}, {path} in {columns}. "
                "Choose with --image-column and --label-column."
            )
        name = columns[1]
        kinds = [s.field(name).type for s in (schemas[first], schema)] if name else []
        if len({_kind(kind) for kind in kinds}) > 1:
            raise UserError(f"column '{name}' is of {kinds[0]} in {first}, of {kinds[1]} in {path}. Convert one.")
        if kinds and _kind(kinds[0]) is None and not pa.types.is_null(kinds[0]):
            raise UserError(
                f"{path}: column '{name}' is of {kinds[0]}, expected whole numbers, texts or booleans. "
                "Choose another with --label-column, or pack without labels by --label-column ''."
            )
    return chosen


def _choose_in(
    path: Path, schema: "pa.Schema", described: dict[str, dict[str, Any]], image: str | None, label: str | None
) -> tuple[str, str | None]:
    """The columns of images and labels in one file."""
    images = image or _image_column(schema, described, path)
    labels = _label_column(schema, described, path) if label is None else label or None
    for column in (images, *([labels] if labels else [])):
        if schema.names.count(column) != 1:
            columns = ", ".join(schema.names)
            raise UserError(f"{path} has {schema.names.count(column) or 'no'} column '{column}' (it has: {columns}).")
    kind = schema.field(images).type
    if not holds_bytes(kind) and not holds_arrays(kind):
        raise UserError(f"{path}: column '{images}' is of {kind}, expected image bytes, or arrays of whole numbers.")
    return images, labels


def _kind(kind: "pa.DataType") -> str | None:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "boolean"
    # pandas writes integers with missing values as floats.
    return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def _image_column(schema: "pa.Schema", described: dict[str, dict[str, Any]], path: Path) -> str:
    columns = [name for name, feature in described.items() if feature.get("_type") == "Image"]
    columns = columns or [name for name, feature in described.items() if feature.get("_type") in ARRAYS]
    columns = columns or [field.name for field in schema if holds_bytes(field.type) or holds_arrays(field.type)]
    if len(columns) != 1:
        raise UserError(f"{path}: image columns: {', '.join(columns) or 'none'}. Choose one with --image-column.")
    return columns[0]


def _label_column(schema: "pa.Schema", described: dict[str, dict[str, Any]], path: Path) -> str | None:
    columns = [name for name, feature in described.items() if feature.get("_type") == "ClassLabel"]
    columns = columns or [name for name in schema.names if name in LABEL_NAMES]
    if len(columns) > 1:
        raise UserError(f"{path}: label columns: {', '.join(columns)}. Choose one with --label-column.")
    return columns[0] if columns else None


@dataclass(frozen=True)
class Labels:
    """The label column of one file, and the labels of its values; without a ``table`` the values are the labels."""

    column: str
    table: tuple[tuple[int | bool | str, int], ...] | None

    def label(self, value: Any, where: str) -> int:
        """The label of a value; -1 (no label) for one that is absent or negative.

        Raises:
            BadSample: a value without a label.
        """
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return -1
        if isinstance(value, float):
            value = _integer(value, where)
        if not isinstance(value, str) and value < 0:
            return -1
        if self.table is None:
            return int(value)
        number = self._by_value.get(value)
        if number is None:
            raise BadSample(f"{where} has label {value!r}, but the source has {len(self.table)} classes. Correct it.")
        return number

    @cached_property
    def _by_value(self) -> dict[int | bool | str, int]:
        return dict(self.table or ())


def _integer(value: float, where: str) -> int:
    if not value.is_integer():
        raise BadSample(f"{where}: label {value} is no whole number. Correct it, or choose another --label-column.")
    return int(value)


def labels(
    paths: list[Path], column: str, described: Mapping[Path, dict[str, dict[str, Any]]]
) -> tuple[dict[Path, Labels], list[str]]:
    """The labels of the values of each file, and the names of the classes.

    Names are the hub's own, in the order of the first file; files that have the same names in another order are
    mapped by name. Without them texts name their classes, in alphabetical order; booleans are two, False and True;
    numbers are named by themselves, up to the largest.

    Raises:
        UserError: the files name different classes, or have values that cannot be labels.
    """
    names = {path: described[path].get(column, {}).get("names") for path in paths}
    if any(listed is not None for listed in names.values()):
        return _named(names, column)
    values: set[Any] = set()
    for path in paths:
        values |= _values(path, column)
        if len(values) > MAX_CLASSES:
            raise UserError(f"{path}, column '{column}': more than {MAX_CLASSES} classes. Is it the labels' column?")
    if any(isinstance(value, str) for value in values):
        classes = sorted(values)
        table = tuple((name, number) for number, name in enumerate(classes))
    elif any(isinstance(value, bool) for value in values):
        classes, table = ["False", "True"], ((False, 0), (True, 1))
    else:
        classes, table = numbered(max(values, default=-1), f"{paths[0].parent}, column '{column}'"), None
    return {path: Labels(column, table) for path in paths}, classes


def _named(names: Mapping[Path, list[str] | None], column: str) -> tuple[dict[Path, Labels], list[str]]:
    (first, classes), *_ = names.items()
    known: dict[Path, list[str]] = {}
    for path, listed in names.items():
        if classes is None or listed is None or set(listed) != set(classes):
            raise UserError(
                f"column '{column}': {first} and {path} name different classes "
                f"({_listed(classes)}; {_listed(listed)}). Pack them apart."
            )
        known[path] = listed
    number = {name: i for i, name in enumerate(known[first])}
    tables = {path: tuple((i, number[name]) for i, name in enumerate(listed)) for path, listed in known.items()}
    return {path: Labels(column, table) for path, table in tables.items()}, known[first]


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "no names"
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _values(path: Path, column: str) -> set[Any]:
    """The distinct labels of a file; for numbers only the largest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    labels: set[Any] = set()
    start = 0
    with guarded(path):
        for batch in opened(path).batches([column]):
            values = batch.column(0)
            if pa.types.is_dictionary(values.type):
                values = values.cast(values.type.value_type)
            if pa.types.is_floating(values.type):
                for row, value in enumerate(values.to_pylist(), start):
                    if value is not None and not math.isnan(value):
                        labels = {max(labels | {_integer(value, f"{path}, row {row}")})}
            elif pa.types.is_integer(values.type):
                largest = pc.call_function("max", [values]).as_py()
                labels = {max(labels | {largest})} if largest is not None else labels
            else:
                labels |= set(values.unique().to_pylist()) - {None}
            start += len(values)
            if len(labels) > MAX_CLASSES:
                return labels
    return labels
