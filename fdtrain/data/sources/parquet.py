"""A folder of parquet files as the Hugging Face hub serves them: encoded images in a column."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrain.data.sources.picture import Fit, decode, fit_like
from fdtrain.data.sources.source import Sample, Source, numbered
from fdtrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SPLIT_NAMES = {"validation": "valid", "val": "valid", "dev": "valid"}

MAX_ROW_GROUP = 1 << 32
"""Bytes of images that a row group may hold; it is read at once."""


@dataclass(frozen=True)
class ParquetFile:
    """One file, read row group by row group."""

    path: Path
    size: int
    rows: int
    image: str
    label: str | None
    fit: Fit

    def count(self) -> int:
        return self.rows

    def open(self) -> Callable[[int], Sample]:
        return _Reader(self)

    def identity(self) -> str:
        return repr((self.path.name, self.size, self.rows, self.image, self.label, self.fit))


class _Reader:
    """Samples of a file by row; holds one row group, rows ``start`` to ``stop``."""

    def __init__(self, part: ParquetFile):
        self.part, self.file = part, _open(part.path)
        self.start = self.stop = 0
        self.columns: dict[str, pa.ChunkedArray] = {}

    def __call__(self, index: int) -> Sample:
        if not self.start <= index < self.stop:
            self._read_group(index)
        row = index - self.start
        where = f"{self.part.path}, row {index}"
        label = self.columns[self.part.label][row].as_py() if self.part.label else None
        image = _bytes(self.columns[self.part.image][row].as_py(), where)
        return decode(image, where, self.part.fit), -1 if label is None else max(int(label), -1)

    def _read_group(self, index: int) -> None:
        import pyarrow as pa

        group, start = 0, 0
        while start + self.file.metadata.row_group(group).num_rows <= index:
            start += self.file.metadata.row_group(group).num_rows
            group += 1
        if self.file.metadata.row_group(group).total_byte_size > MAX_ROW_GROUP:
            raise UserError(f"{self.part.path}: row group {group} is absurdly large. Write it in smaller ones.")
        columns = [self.part.image, *([self.part.label] if self.part.label else [])]
        try:
            table = self.file.read_row_group(group, columns=columns)
            self.columns = {name: table.column(name) for name in columns}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"{self.part.path} is damaged or lacks a column ({error}). Fetch it again.") from error
        self.start, self.stop = start, start + table.num_rows


def _open(path: Path) -> "pq.ParquetFile":
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("parquet needs pyarrow. Install it: pip install 'fdtrain[parquet]'.") from error
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file, or cut short ({error}). Fetch it again.") from error


def _bytes(value: Any, where: str) -> bytes:
    """The encoded image of a row: the bytes themselves, or ``{"bytes": ..., "path": ...}``."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise UserError(f"{where}: no image bytes. Only data sets that embed their images can be packed.")
    return data


def parquet(
    folder: Path,
    name: str,
    image: str | None,
    label: str | None,
    resize: int | None,
    channels: int | None,
) -> Source:
    """Every split of the folder, rows in the order they are stored in. A negative label means none.

    Args:
        folder: with files such as ``data/train-00000-of-00002.parquet`` or ``test/0000.parquet``.
        name: of the data set.
        image, label: columns; ``None``: the only one of its kind (a data set need not have labels).
        resize, channels: as for images in a folder.

    Raises:
        UserError: no parquet files, columns that are missing or ambiguous, an image that does not fit.
    """
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} is no folder with .parquet files. Download the data set's files first.")
    schema = _open(files[0]).schema_arrow
    features = _features(schema)
    image = image or _image_column(schema, features, files[0])
    label = label or _label_column(schema, features, files[0])
    for column in (image, *([label] if label else [])):
        if column not in schema.names:
            raise UserError(f"{files[0]} has no column '{column}' (it has: {', '.join(schema.names)}).")
    fit = _fit(files, image, resize, channels)
    splits: dict[str, list[ParquetFile]] = {}
    for path in files:
        rows = _open(path).metadata.num_rows
        if rows:
            splits.setdefault(_split(path, folder), []).append(
                ParquetFile(path, path.stat().st_size, rows, image, label, fit)
            )
    change = f", largest centre square, Lanczos to {resize}x{resize}" if resize else ""
    return Source(
        name=name,
        source=f"{folder.name} (parquet, images '{image}', labels '{label}'){change}",
        size=fit.size,
        channels=fit.channels,
        classes=_classes(files, label, features) if label else [],
        splits=splits,
    )


def _split(path: Path, folder: Path) -> str:
    """``train-00000-of-00002.parquet`` names its split; else the folder does; else the file's own name."""
    named = re.fullmatch(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?", path.stem)
    beside = path.stem if path.parent == folder else path.parent.name
    split = re.sub(r"[^A-Za-z0-9_]", "_", named[1] if named else beside)
    return SPLIT_NAMES.get(split, split)


def _features(schema: "pa.Schema") -> dict[str, Any]:
    """The hub's own description of the columns, if there is one."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}


def _image_column(schema: "pa.Schema", features: dict[str, Any], path: Path) -> str:
    import pyarrow as pa

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "Image"]
    found = found or [f.name for f in schema if holds_bytes(f.type)]
    if len(found) != 1:
        raise UserError(f"{path}: image columns: {', '.join(found) or 'none'}. Choose one with --image-column.")
    return found[0]


def _label_column(schema: "pa.Schema", features: dict[str, Any], path: Path) -> str | None:
    import pyarrow as pa

    found = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    found = found or [f.name for f in schema if f.name in ("label", "labels") and pa.types.is_integer(f.type)]
    if len(found) > 1:
        raise UserError(f"{path}: label columns: {', '.join(found)}. Choose one with --label-column.")
    return found[0] if found else None


def _fit(files: list[Path], image: str, resize: int | None, channels: int | None) -> Fit:
    for path in files:
        for batch in _open(path).iter_batches(batch_size=1, columns=[image]):
            where = f"{path}, row 0"
            return fit_like(_bytes(batch.column(0)[0].as_py(), where), where, resize, channels)
    raise UserError(f"{files[0].parent}: the parquet files have no rows.")


def _classes(files: list[Path], label: str, features: dict[str, Any]) -> list[str]:
    """Names from the hub's description; without one, the numbers up to the largest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = features.get(label, {}).get("names")
    if isinstance(names, list):
        return [str(name) for name in names]
    largest = -1
    for path in files:
        for batch in _open(path).iter_batches(columns=[label]):
            column = batch.column(0)
            if not pa.types.is_integer(column.type):
                raise UserError(f"{path}: column '{label}' is of {column.type}, expected whole numbers.")
            found = pc.max(column).as_py()
            largest = largest if found is None else max(largest, found)
    return numbered(largest, f"{files[0].parent}, column '{label}'")
