"""Rows of tables as samples: an image column, a label column, and the splits that the files are of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fdtrain.data.sources.archive import Member
from fdtrain.data.sources.columns import Labels, choose, features, labels
from fdtrain.data.sources.image_column import image, is_null
from fdtrain.data.sources.picture import Fit, decode, fit_like_first
from fdtrain.data.sources.source import Sample, Source
from fdtrain.data.sources.tables import guarded, opened
from fdtrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

NAMED_NULLS = 10
"""Rows without an image that a note names."""


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


@dataclass(frozen=True)
class TablePart:
    """One file, read a group of rows at a time; the rows ``nulls`` are skipped."""

    path: Path
    size: int
    rows: int
    image: str
    labels: Labels | None
    fit: Fit
    nulls: tuple[int, ...] = ()

    def count(self) -> int:
        return self.rows - len(self.nulls)

    def open(self) -> Callable[[int], Sample]:
        return _Reader(self)

    def identity(self) -> str:
        return repr((self.path.name, self.size, self.rows, self.image, self.labels, self.fit, self.nulls))


class _Reader:
    """Samples of a file. One group, rows ``start`` to ``stop``, is in memory."""

    def __init__(self, part: TablePart):
        self.part, self.file = part, opened(part.path)
        self.row_of = np.delete(np.arange(part.rows), part.nulls)
        self.start = self.stop = 0
        self.columns: dict[str, pa.ChunkedArray] = {}

    def __call__(self, index: int) -> Sample:
        row, part = int(self.row_of[index]), self.part
        if not self.start <= row < self.stop:
            self._read_group(row)
        where = f"{part.path}, row {row}"
        with guarded(part.path):
            value = self.columns[part.image][row - self.start]
            name = self.columns[part.labels.column][row - self.start].as_py() if part.labels else None
        label = part.labels.label(name, where) if part.labels else -1
        return decode(image(value, where), where, part.fit), label

    def _read_group(self, row: int) -> None:
        group, start = 0, 0
        while start + self.file.groups[group] <= row:
            start += self.file.groups[group]
            group += 1
        columns = [self.part.image, *([self.part.labels.column] if self.part.labels else [])]
        with guarded(self.part.path):
            table = self.file.read(group, columns)
            self.columns = {name: table.column(name) for name in columns}
        self.start, self.stop = start, start + table.num_rows


class _Row(NamedTuple):
    path: Path
    number: int
    value: Any

    def __str__(self) -> str:
        return f"{self.path}, row {self.number}"


def table_source(splits: Mapping[str, Sequence[Member]], name: str, source: str, where: Path, choice: Choice) -> Source:
    """Every split, rows in the order they are stored in. A negative or absent label means none.

    Args:
        splits: the files of each split, in order.
        name: the name of the data set.
        source: what it was made of, for its description.
        where: its folder, for messages.

    Raises:
        UserError: files of different kinds, columns that are missing, ambiguous or of a type that they cannot be, an
            image that does not fit.
    """
    paths = [file.path for of_split in splits.values() for file in of_split]
    files = {path: opened(path) for path in paths}
    rows = {path: sum(file.groups) for path, file in files.items()}
    if not any(rows.values()):
        raise UserError(f"{where}: the files have no rows.")
    schemas = {path: file.schema for path, file in files.items()}
    described = {path: features(schemas[path], path) for path in paths}
    column, label = choose(schemas, described, choice.image, choice.label)
    of_file, classes = labels(paths, label, described) if label else ({}, [])
    fit = fit_like_first(_rows(paths, column), lambda row: image(row.value, str(row)), choice.resize, choice.channels)
    unused = [other for other in schemas[paths[0]].names if other not in (column, label)]
    notes = [f"columns that are not packed: {', '.join(unused)}."] if unused else []
    nulls = {path: _nulls(path, column) if choice.skip_nulls else () for path in paths}
    notes += _null_note(nulls)
    parts: dict[str, list[TablePart]] = {}
    for split, of_split in splits.items():
        for file in of_split:
            path = file.path
            part = TablePart(path, file.size, rows[path], column, of_file.get(path), fit, nulls[path])
            if part.count():
                parts.setdefault(split, []).append(part)
    change = f", largest centre square, Lanczos to {choice.resize}x{choice.resize}" if choice.resize else ""
    chosen = f"configuration '{choice.configuration}', " if choice.configuration else ""
    return Source(
        name=name,
        source=f"{source}, {chosen}images '{column}', labels '{label}'){change}",
        size=fit.size,
        channels=fit.channels,
        classes=classes,
        splits=parts,
        notes=tuple(notes),
    )


def _rows(paths: Sequence[Path], column: str) -> Iterator[_Row]:
    for path in paths:
        with guarded(path):
            number = 0
            for batch in opened(path).batches([column], rows=16):
                for value in batch.column(0):
                    yield _Row(path, number, value)
                    number += 1


def _nulls(path: Path, column: str) -> tuple[int, ...]:
    """The rows that have no image."""
    file, start, found = opened(path), 0, []
    with guarded(path):
        for group, rows in enumerate(file.groups):
            if file.has_nulls(group, column):
                values = file.read(group, [column]).column(column)
                found += [start + i for i, value in enumerate(values) if is_null(value)]
            start += rows
    return tuple(found)


def _null_note(nulls: Mapping[Path, tuple[int, ...]]) -> list[str]:
    count = sum(map(len, nulls.values()))
    if not count:
        return []
    every = (f"{path}, row {row}" for path, rows in nulls.items() for row in rows)
    named = "; ".join(islice(every, NAMED_NULLS)) + ("; ..." if count > NAMED_NULLS else "")
    return [f"rows without an image, skipped: {count} ({named})."]
