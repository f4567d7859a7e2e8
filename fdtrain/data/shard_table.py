"""Lists of shards: within ``dataset.json``, or, of more than fit there, as rows of files that it names (docs/data.md).

A row has a fixed number of bytes, so that a million shards are one array of some 80 MB, and an object each only when
they are asked for.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fdtrain.credentials import masked
from fdtrain.data.fetch import read_file
from fdtrain.data.host import made_once
from fdtrain.errors import UserError, excerpt
from fdtrain.files import write_atomically

INLINE = 10_000
"""The most shards of a split that ``dataset.json`` itself lists."""
PART = 1 << 16
"""The shards of a file."""
FOLDER = "index"
MAX_PART_BYTES = 1 << 30


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Model):
    """One tar file. ``place``: its path from the data set's folder, or its URL, where it is not ``file`` there."""

    # Both become file names.
    file: str = Field(pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$", max_length=200)
    images: int = Field(ge=0, le=1 << 40)
    bytes: int = Field(ge=0, le=1 << 50)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    place: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f]+$", max_length=5000)

    @field_validator("place")
    @classmethod
    def _check_place(cls, place: str | None) -> str | None:
        if place is not None and (place.startswith("pipe:") or masked(place) != place):
            raise ValueError("commands, and URLs with credentials or a query, belong into a list of shards")
        return place


class TablePart(Model):
    """A file of rows, its checksum, and the bytes of the longest ``file`` and ``place`` in it."""

    file: str = Field(pattern=rf"^{FOLDER}/[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=250)
    shards: int = Field(ge=1, le=PART)
    name_bytes: int = Field(ge=1, le=800)
    place_bytes: int = Field(ge=1, le=20_000)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def row(self) -> np.dtype:
        return _row(self.name_bytes, self.place_bytes)


class TableParts(Model):
    """What stands in ``dataset.json`` in place of the list of a split's shards."""

    parts: list[TablePart] = Field(min_length=1, max_length=1 << 12)


def _row(name_bytes: int, place_bytes: int) -> np.dtype:
    return np.dtype(
        [
            ("file", f"S{name_bytes}"),
            ("place", f"S{place_bytes}"),
            ("images", "<i8"),
            ("bytes", "<i8"),
            ("sha256", "V32"),
        ]
    )


class ShardTable(Sequence[Shard]):
    """The shards of a split, as rows. ``where`` names their list in messages."""

    def __init__(self, rows: np.ndarray, where: str = "dataset.json"):
        self.rows, self.where = rows, where

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> "ShardTable":
        rows: list[tuple[Any, ...]] = [
            (s.file.encode(), (s.place or "").encode(), s.images, s.bytes, bytes.fromhex(s.sha256)) for s in shards
        ]
        widths = [max([1, *(len(row[column]) for row in rows)]) for column in (0, 1)]
        return cls(np.array(rows, _row(*widths)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Raises UserError if the row is no shard."""
        row: Any = self.rows[index]
        try:
            return Shard(
                file=row["file"].decode(),
                images=int(row["images"]),
                bytes=int(row["bytes"]),
                sha256=row["sha256"].tobytes().hex(),
                place=row["place"].decode() or None,
            )
        except ValueError as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise UserError(f"{self.where}, shard {index}: {excerpt(first)}. Pack the data set again.") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @property
    def images(self) -> np.ndarray:
        """The number of images of each."""
        return self.rows["images"]

    def only(self, which: ArrayLike) -> "ShardTable":
        """Those of a mask."""
        return self if np.all(which) else ShardTable(self.rows[np.asarray(which)], self.where)

    def files(self) -> Iterator[str]:
        return (file for file, *_ in self.identities())

    def places(self) -> list[str]:
        """Of those that are not in the data set's folder by the name of their file."""
        return [place.decode(errors="replace") for place in self.rows["place"].tolist() if place]

    def identities(self) -> Iterator[tuple[str, int, str]]:
        """File, number of images and checksum of each."""
        for start in range(0, len(self.rows), PART):
            rows = self.rows[start : start + PART]
            files = (name.decode(errors="replace") for name in rows["file"].tolist())
            yield from zip(files, rows["images"].tolist(), (s.hex() for s in rows["sha256"].tolist()), strict=True)


def concatenated(tables: Sequence[ShardTable]) -> ShardTable:
    """One after another."""
    return ShardTable(np.concatenate([table.rows for table in tables]), tables[0].where)


def repeated(splits: Iterable[ShardTable]) -> str | None:
    """A file that is listed twice, in one split or in two."""
    names = np.concatenate([np.empty(0, "S1"), *(shards.rows["file"] for shards in splits)])
    # The stable sort goes once through what is in order already, as a packer lists them.
    names.sort(kind="stable")
    again = names[1:][names[1:] == names[:-1]]
    return again[0].decode(errors="replace") if len(again) else None


def write(folder: Path, split: str, shards: Iterable[Shard]) -> list[dict[str, Any]] | dict[str, Any]:
    """What stands for a split's shards in ``folder/dataset.json``. Files of rows are written beside it. Raises OSError:
    one cannot be written."""
    left = iter(shards)
    first = list(islice(left, INLINE + 1))
    if len(first) <= INLINE:
        return [shard.model_dump(exclude_none=True) for shard in first]
    left, parts = chain(first, left), list[TablePart]()
    while of_part := list(islice(left, PART)):
        file, rows = f"{FOLDER}/{split}-{len(parts):06d}.shards", ShardTable.of(of_part).rows
        data, (name_bytes, place_bytes) = rows.tobytes(), (rows.dtype[name].itemsize for name in ("file", "place"))
        write_atomically(folder / file, partial(Path.write_bytes, data=data))
        digest = hashlib.sha256(data).hexdigest()
        parts.append(
            TablePart(file=file, shards=len(rows), name_bytes=name_bytes, place_bytes=place_bytes, sha256=digest)
        )
    return TableParts(parts=parts).model_dump()


def read(parts: Sequence[TablePart], place: Callable[[str], str], seconds: float, where: str) -> ShardTable:
    """The rows of these files. ``place`` gives the path or URL of a file's name. Raises UserError: one is missing, or
    not what ``dataset.json`` describes."""
    if any(part.shards * part.row.itemsize > MAX_PART_BYTES for part in parts) or len(parts) * PART > 1 << 24:
        raise UserError(f"{where} names absurdly long lists of shards. Pack the data set again.")
    row = _row(*(max(getattr(part, name) for part in parts) for name in ("name_bytes", "place_bytes")))

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for part in parts:
                data = read_file(place(part.file), seconds, part.shards * part.row.itemsize)
                if hashlib.sha256(data).hexdigest() != part.sha256:
                    raise UserError(
                        f"{where} describes another {part.file} than there is: changed or cut short. "
                        "Restore it or pack the data set again."
                    )
                file.write(np.frombuffer(data, part.row).astype(row).tobytes())

    # The processes of a host share the memory too.
    path = made_once(f"shards {[part.sha256 for part in parts]}", write)
    rows = np.asarray(np.memmap(path, row, "r"))
    if rows["images"].min() < 0 or rows["bytes"].min() < 0:
        raise UserError(f"{where} lists shards of less than no images or bytes. Pack the data set again.")
    return ShardTable(rows, where)
