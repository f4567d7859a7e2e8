"""The index of a shard: where its samples are and what their labels are, so that opening a shard is one read.

``index/FILE.idx`` beside ``dataset.json`` (docs/data.md): a line of JSON, columns with an entry for each sample, and
the CRC-32 of both. It is written with the shard or when the shard is first checked, and belongs to one content of it.
"""

import json
import os
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fdtrain.data.dataset import Line, Suffix
from fdtrain.data.members import BAD_LABEL, NO_LABEL, MemberReader
from fdtrain.data.shard_table import FOLDER, Model, Shard
from fdtrain.data.tar import BLOCK, check_header
from fdtrain.errors import UserError, excerpt
from fdtrain.files import write_atomically

COLUMNS = {"kind": "i1", "label": "<i4", "offset": "<i8", "size": "<i8"}
WIDTH = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())
MAX_BYTES = 1 << 30
"""Of fifty million samples."""


class Samples(NamedTuple):
    """Columns, an entry a sample.

    Attributes:
        kind: of the image among ``IMAGES``, or, in a file, among its suffixes; -1: there is none.
        label: a number; ``NO_LABEL``, ``BAD_LABEL``.
        offset, size: of the image in the shard, in bytes.
    """

    kind: np.ndarray
    label: np.ndarray
    offset: np.ndarray
    size: np.ndarray


class NamedLabels(Model):
    """Labels by the names of their classes, from the members of one suffix."""

    suffix: Suffix | None
    field: Line | None
    classes: list[Line]


class Header(Model):
    """Whose index it is, and what its columns refer to.

    Attributes:
        images: suffixes of images.
        named: of labels that are numbers of ``named.classes``; None: they are the classes' own numbers.
    """

    format: Literal["fdtrain index 1"] = "fdtrain index 1"
    sha256: str
    bytes: int
    samples: Annotated[int, Field(ge=0, le=1 << 32)]
    images: Annotated[list[Suffix], Field(max_length=100)]
    named: NamedLabels | None = None


def place(folder: Path, file: str) -> Path:
    """Of a shard's index, in the folder of ``dataset.json``."""
    return folder / FOLDER / f"{file}.idx"


def content(shard: Shard, images: Sequence[str], samples: "array[int]", named: NamedLabels | None = None) -> bytes:
    """Of an index file. Samples are kind, label, offset and size, one after another."""
    table = np.array(samples, np.int64).reshape(-1, len(COLUMNS))
    # Names that a description cannot have are told when that is written.
    header = Header.model_construct(
        sha256=shard.sha256, bytes=shard.bytes, samples=len(table), images=list(images), named=named
    ).model_dump_json()
    columns = zip(COLUMNS.values(), table.T, strict=True)
    data = b"".join([header.encode(), b"\n", *(column.astype(kind).tobytes() for kind, column in columns)])
    return data + zlib.crc32(data).to_bytes(4, "little")


def write(path: Path, data: bytes) -> None:
    """Of many, which whoever writes them flushes to the disk together, by ``os.sync``."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data), durable=False)


def read(path: Path, shard: Shard, file: int, reader: MemberReader) -> Samples | None:
    """The samples of an open shard; None: it has no index, as those of earlier versions. Raises UserError: the index
    does not fit the shard. OSError: it cannot be read."""
    if not path.is_file():
        return None
    with path.open("rb") as index:
        # No more than there is: a read allocates what it is asked for.
        data = index.read(min(MAX_BYTES, path.stat().st_size))
    try:
        return _samples(data, shard, file, reader)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no index of this {shard.file} ({excerpt(error)}). Restore both; or remove the index, and the "
            "shard is read by its own headers."
        ) from error


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of an index and its columns. ValueError, unless they are as they were written."""
    if len(data) < 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("checksum mismatch")
    line, _, columns = memoryview(data)[:-4].tobytes().partition(b"\n")
    return json.loads(line), columns


def _samples(data: bytes, shard: Shard, file: int, reader: MemberReader) -> Samples:
    content, columns = parts(data)
    header = Header.model_validate(content)
    if (header.sha256, header.bytes) != (shard.sha256, shard.bytes):
        raise ValueError("of another content")
    if header.samples != shard.images or len(columns) != header.samples * WIDTH:
        raise ValueError(f"{header.samples} samples, {shard.images} in dataset.json")
    found, start = {}, 0
    for name, kind in COLUMNS.items():
        found[name] = np.frombuffer(columns, kind, header.samples, start)
        start += found[name].nbytes
    samples = Samples(**found)
    if unknown := [suffix for suffix in header.images if suffix not in reader.images]:
        raise ValueError(f"images '{unknown[0]}', which are none of the data set")
    kinds = np.array([reader.images[suffix] for suffix in header.images], np.int64)
    ends = samples.offset + samples.size
    if len(ends) and (
        samples.offset.min() < BLOCK
        or samples.size.min() < 0
        or not BLOCK <= ends.min() <= ends.max() <= shard.bytes
        or not -1 <= samples.kind.min() <= samples.kind.max() < len(kinds)
        or samples.label.min() < BAD_LABEL
    ):
        raise ValueError("samples that are not within the shard")
    for last in np.flatnonzero(samples.kind >= 0)[-1:].tolist():
        header_at = samples.offset.item(last) - BLOCK
        check_header(os.pread(file, BLOCK, header_at), header_at, samples.size.item(last))
    return samples._replace(kind=np.append(kinds, -1)[samples.kind], label=_labels(header, samples.label, reader))


def _labels(header: Header, labels: np.ndarray, reader: MemberReader) -> np.ndarray:
    """The number of each label in the data set."""
    members, named = reader.members, header.named
    if (named and (named.suffix, named.field)) != (members and (members.label, members.field)):
        raise ValueError("labels of other members")
    if named is None or reader.numbers is None:
        return labels
    if labels.max(initial=NO_LABEL) >= len(named.classes):
        raise ValueError("labels without a class")
    if unknown := [name for name in named.classes if name not in reader.numbers]:
        raise ValueError(f"class '{unknown[0]}', which the data set lacks")
    return np.array([*(reader.numbers[name] for name in named.classes), BAD_LABEL, NO_LABEL])[labels]
