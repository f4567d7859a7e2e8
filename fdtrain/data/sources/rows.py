"""Rows of tables as samples: a column of images and one of labels, as the library ``datasets`` has them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fdtrain.data.decode import BadSample
from fdtrain.data.sources.archive import read, single
from fdtrain.data.sources.picture import method
from fdtrain.data.sources.source import Part, Sample, Source, even, fit_like_first, numbered
from fdtrain.errors import UserError, excerpt

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

LABEL_NAMES = ("label", "labels")
NAMED_NULLS = 10
"""Rows without an image that a note names."""
BATCH = 64
"""Rows that are in memory at a time."""


class Choice(NamedTuple):
    """What the user has chosen of a table.

    Args:
        image, label: the columns; ``None``: the only one of its kind (a data set need not have labels). An empty label
            column means no labels.
        resize, channels: as for images in a folder.
        configuration: the hub's configuration; ``None``: the only one.
        skip_nulls: pack the other rows if some have no image; such a row is a bad image otherwise.
    """

    image: str | None = None
    label: str | None = None
    resize: int | None = None
    channels: int | None = None
    configuration: str | None = None
    skip_nulls: bool = False


class Columns(NamedTuple):
    """What rows consist of.

    Args:
        numbers: of classes that are texts; None: labels are numbers.
        paths: images may be files of their own, whose paths are in the table.
    """

    image: str
    label: str | None
    numbers: Mapping[str, int] | None
    paths: bool


def _values(data: "Dataset", columns: Sequence[str | None]) -> Callable[[int, str], Any]:
    """Reads the value of a row in a column, fastest in the order of rows."""
    table = data.select_columns([column for column in columns if column]).with_format("arrow")

    @lru_cache(1)
    def batch(number: int) -> "pa.Table":
        return table[BATCH * number : BATCH * (number + 1)]

    return lambda row, column: batch(row // BATCH).column(column)[row % BATCH].as_py()


def _picture(value: Any, paths: bool, where: str) -> bytes | np.ndarray:
    """The image of a row, encoded or as an array of uint8. Raises BadSample: there is none, it is in a file of its own,
    or the array is not one of pixels."""
    if _is_null(value):
        raise BadSample(f"{where}: no image (null). Pack the other rows alone by --null-images skip.")
    if isinstance(value, dict):
        if value.get("bytes") is None and paths:
            return read(single(Path(value["path"])))
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if value is None:
        raise BadSample(f"{where}: no image bytes. Only data sets that embed their images can be packed.")
    try:
        pixels = np.array(value)
    except ValueError as error:
        raise BadSample(f"{where}: rows of pixels of different lengths. Correct it.") from error
    if pixels.dtype.kind not in "iu" or not pixels.size or pixels.min() < 0 or pixels.max() > 255:
        raise BadSample(f"{where}: pixels that are not all whole numbers from 0 to 255. Correct or convert it.")
    return pixels.astype(np.uint8)


def _part(data: "Dataset", where: str, rows: Sequence[int], columns: Columns) -> Part:
    """Some rows of a split."""
    files = [Path(file["filename"]) for file in data.cache_files]
    sizes = [(file.name, file.stat().st_size) for file in files if file.exists()]
    identity = where, len(data), sizes, rows, *columns[:3]
    return Part(identity, len(rows), partial(_open, data, where, rows, columns))


def _open(data: "Dataset", where: str, rows: Sequence[int], columns: Columns) -> Callable[[int], Sample]:
    value = _values(data, columns[:2])

    def read(index: int) -> Sample:
        row, label = rows[index], -1
        named = f"{where}, row {row}"
        if columns.label:
            label = _number(value(row, columns.label), columns.numbers, named)
        return _picture(value(row, columns.image), columns.paths, named), label, named

    return read


def row_source(
    splits: "Mapping[str, Dataset]", name: str, source: str, choice: Choice, share: int, paths: bool
) -> Source:
    """Every split. A negative or absent label means none. ``paths`` is as of :class:`Columns`. Raises UserError:
    columns that are missing, ambiguous or of a type that they cannot be, or that differ between splits; no image that
    fits."""
    features = next(iter(splits.values())).features
    image, label = _columns(features, source, choice)
    for split, data in splits.items():
        for column in (image, *([label] if label else [])):
            if data.features.get(column) != features[column]:
                raise UserError(f"{source}: column '{column}' is of another type in split '{split}'. Convert one.")
    classes, numbers = _classes(splits, features, label, source) if label else ([], None)
    columns = Columns(image, label, numbers, paths)
    rows: dict[str, Sequence[int]] = {split: range(len(data)) for split, data in splits.items()}
    nulls: list[str] = []
    if choice.skip_nulls:
        for split, data in splits.items():
            value, every = _values(data, [image]), rows[split]
            rows[split] = tuple(row for row in every if not _is_null(value(row, image)))
            nulls += [f"{split}, row {row}" for row in sorted({*every} - {*rows[split]})]
    unused = [column for column in features if column not in (image, label)]
    notes = [f"columns that are not packed: {', '.join(unused)}."] if unused else []
    if nulls:
        named = "; ".join(nulls[:NAMED_NULLS]) + ("; ..." if len(nulls) > NAMED_NULLS else "")
        notes.append(f"rows without an image, skipped: {len(nulls)} ({named}).")
    parts = {
        split: [
            _part(data, f"{source}, {split}", rows[split][cut.start : cut.stop], columns)
            for cut in even(len(rows[split]), share)
        ]
        for split, data in splits.items()
        if rows[split]
    }
    chosen = f"configuration '{choice.configuration}', " if choice.configuration else ""
    return Source(
        name=name,
        source=f"{source} (datasets, {chosen}images '{image}', labels '{label}')"
        + (f", {method(choice.resize)}" if choice.resize else ""),
        fit=fit_like_first(chain(*parts.values()), source, choice.resize, choice.channels),
        classes=classes,
        splits=parts,
        notes=tuple(notes),
    )


def _columns(features: "Features", source: str, choice: Choice) -> tuple[str, str | None]:
    """The columns of images and labels."""
    import datasets

    def of_type(*kinds: type) -> list[str]:
        return [name for name, feature in features.items() if isinstance(feature, kinds)]

    types = {field.name: field.type for field in features.arrow_schema}
    images = [choice.image] if choice.image else of_type(datasets.Image)
    images = images or of_type(datasets.Array2D, datasets.Array3D) or [n for n, t in types.items() if _may_be_image(t)]
    labels = of_type(datasets.ClassLabel) or [name for name in features if name in LABEL_NAMES]
    labels = labels if choice.label is None else [choice.label] if choice.label else []
    for kind, found, least in (("image", images, 1), ("label", labels, 0)):
        if not least <= len(found) <= 1:
            raise UserError(f"{source}: {kind} columns: {', '.join(found) or 'none'}. Choose one with --{kind}-column.")
        if found and found[0] not in features:
            raise UserError(f"{source} has no column '{found[0]}' (it has: {', '.join(features)}).")
    if not _may_be_image(types[images[0]]):
        raise UserError(f"{source}: column '{images[0]}' is of {types[images[0]]}, no images. Choose --image-column.")
    return images[0], labels[0] if labels else None


def _may_be_image(kind: "pa.DataType") -> bool:
    """Whether these are bytes, ``{bytes, path}``, or lists of lists (of lists) of whole numbers."""
    import pyarrow as pa

    kind = getattr(kind, "storage_type", kind)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth == 0:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return depth in (2, 3) and pa.types.is_integer(kind)


def _classes(
    splits: "Mapping[str, Dataset]", features: "Features", label: str, source: str
) -> tuple[list[str], dict[str, int] | None]:
    """The names of the classes, and the numbers of those that are texts.

    Names are the hub's own; without them texts name their classes, in alphabetical order; booleans are two, False and
    True; numbers are named by themselves, up to the largest.
    """
    where = f"{source}, column '{label}'"
    if names := getattr(features[label], "names", None):
        return list(names), None
    kind = getattr(features[label], "dtype", "")
    if kind == "bool":
        return ["False", "True"], None
    text = kind in ("string", "large_string")
    if not text and kind != "null" and not kind.startswith(("int", "uint", "float")):
        raise UserError(
            f"{where} is of {excerpt(features[label])}, expected whole numbers, texts or booleans. "
            "Choose another with --label-column, or pack without labels by --label-column ''."
        )
    values = {value for data in splits.values() for value in data.unique(label) if value is not None}
    if not text:
        return numbered(max((_number(value, None, where) for value in values), default=-1), where), None
    numbered(len(values) - 1, where)
    classes = sorted(values)
    return classes, {name: number for number, name in enumerate(classes)}


def _number(value: Any, numbers: Mapping[str, int] | None, where: str) -> int:
    if value is None:
        return -1
    if numbers is not None:
        return numbers[value]
    if math.isnan(value):
        return -1
    # pandas writes integers with missing values as floats.
    if value != int(value):
        raise BadSample(f"{where}: label {value} is no whole number. Correct it, or choose another --label-column.")
    return max(int(value), -1)


def _is_null(value: Any) -> bool:
    """Whether a row has no image: neither bytes nor an array nor a path."""
    return value is None or (isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None)
