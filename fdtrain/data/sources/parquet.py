"""A folder of parquet files as the Hugging Face hub serves them: encoded images in a column."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fdtrain.data.sources import hub
from fdtrain.data.sources.archive import members
from fdtrain.data.sources.columns import Labels, choose, features, guarded, labels, opened
from fdtrain.data.sources.picture import Fit, decode, fit_like_first
from fdtrain.data.sources.source import BadSample, Sample, Source
from fdtrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROW_GROUP = 1 << 32
"""The most bytes of images in a row group, which is read at once."""


@dataclass(frozen=True)
class ParquetFile:
    """One file, read row group by row group."""

    path: Path
    size: int
    rows: int
    image: str
    labels: Labels | None
    fit: Fit

    def count(self) -> int:
        return self.rows

    def open(self) -> Callable[[int], Sample]:
        return _Reader(self)

    def identity(self) -> str:
        return repr((self.path.name, self.size, self.rows, self.image, self.labels, self.fit))


class _Reader:
    """Samples of a file by row. One row group, rows ``start`` to ``stop``, is in memory."""

    def __init__(self, part: ParquetFile):
        self.part, self.file = part, opened(part.path)
        self.start = self.stop = 0
        self.columns: dict[str, pa.ChunkedArray] = {}

    def __call__(self, index: int) -> Sample:
        if not self.start <= index < self.stop:
            self._read_group(index)
        row, part = index - self.start, self.part
        where = f"{part.path}, row {index}"
        with guarded(part.path):
            value = self.columns[part.image][row].as_py()
            name = self.columns[part.labels.column][row].as_py() if part.labels else None
        label = part.labels.label(name, where) if part.labels else -1
        return decode(_bytes(value, where), where, part.fit), label

    def _read_group(self, index: int) -> None:
        group, start = 0, 0
        while start + self.file.metadata.row_group(group).num_rows <= index:
            start += self.file.metadata.row_group(group).num_rows
            group += 1
        if self.file.metadata.row_group(group).total_byte_size > MAX_ROW_GROUP:
            raise UserError(f"{self.part.path}: row group {group} is absurdly large. Write it in smaller ones.")
        columns = [self.part.image, *([self.part.labels.column] if self.part.labels else [])]
        with guarded(self.part.path):
            table = self.file.read_row_group(group, columns=columns)
            self.columns = {name: table.column(name) for name in columns}
        self.start, self.stop = start, start + table.num_rows


class _Row(NamedTuple):
    path: Path
    number: int
    value: Any

    def __str__(self) -> str:
        return f"{self.path}, row {self.number}"


def _bytes(value: Any, where: str) -> bytes:
    """The encoded image of a row: the bytes themselves, or ``{"bytes": ..., "path": ...}``."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadSample(f"{where}: no image bytes. Only data sets that embed their images can be packed.")
    return data


def parquet(
    folder: Path,
    name: str,
    image: str | None,
    label: str | None,
    resize: int | None,
    channels: int | None,
    configuration: str | None = None,
) -> Source:
    """Every split of a configuration, rows in the order they are stored in. A negative or absent label means none.

    Args:
        folder: with files such as ``data/train-00000-of-00002.parquet`` or ``test/0000.parquet``.
        name: the name of the data set.
        image, label: the columns; ``None``: the only one of its kind (a data set need not have labels). An empty label
            column means no labels.
        resize, channels: as for images in a folder.
        configuration: the hub's configuration; ``None``: the only one.

    Raises:
        UserError: no parquet files, some that are missing or of different kinds, columns that are missing, ambiguous
            or of a type that they cannot be, an image that does not fit.
    """
    files = [file for file in members(folder) if file.name.endswith(".parquet")] if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} is no folder with .parquet files. Download the data set's files first.")
    splits = hub.splits(files, configuration, folder)
    paths = [file.path for of_split in splits.values() for file in of_split]
    rows = {path: opened(path).metadata.num_rows for path in paths}
    if not any(rows.values()):
        raise UserError(f"{folder}: the parquet files have no rows.")
    schemas = {path: opened(path).schema_arrow for path in paths}
    described = {path: features(schemas[path], path) for path in paths}
    image, label = choose(schemas, described, image, label)
    of_file, classes = labels(paths, label, described) if label else ({}, [])
    fit = fit_like_first(_rows(paths, image), lambda row: _bytes(row.value, str(row)), resize, channels)
    unused = [column for column in schemas[paths[0]].names if column not in (image, label)]
    parts: dict[str, list[ParquetFile]] = {}
    for split, of_split in splits.items():
        for file in of_split:
            if rows[file.path]:
                part = ParquetFile(file.path, file.size, rows[file.path], image, of_file.get(file.path), fit)
                parts.setdefault(split, []).append(part)
    change = f", largest centre square, Lanczos to {resize}x{resize}" if resize else ""
    chosen = f"configuration '{configuration}', " if configuration else ""
    return Source(
        name=name,
        source=f"{folder.name} (parquet, {chosen}images '{image}', labels '{label}'){change}",
        size=fit.size,
        channels=fit.channels,
        classes=classes,
        splits=parts,
        notes=(f"columns that are not packed: {', '.join(unused)}.",) if unused else (),
    )


def _rows(paths: list[Path], image: str) -> Iterator[_Row]:
    for path in paths:
        with guarded(path):
            number = 0
            for batch in opened(path).iter_batches(batch_size=16, columns=[image]):
                for value in batch.column(0):
                    yield _Row(path, number, value.as_py())
                    number += 1
