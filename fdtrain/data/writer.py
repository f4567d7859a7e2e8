"""Writes shards: which images go into which shard, and shards that are complete or absent."""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from fdtrain import files
from fdtrain.data.dataset import Shard
from fdtrain.data.sources.source import BadSample, Part, Sample, even
from fdtrain.data.tar_writer import TarWriter
from fdtrain.data.workers import stopped
from fdtrain.errors import UserError

WORK = ".packing"
"""The folder beside the shards for unfinished ones, and for the records of finished ones."""

ENCODINGS = ("npy", "png")

REPORTED = 20
"""Bad images that are reported one by one."""
MANY = 1000
"""Bad images after which a part is abandoned: then the command is wrong rather than the images."""


class ShardRange(NamedTuple):
    """The images of one planned shard: its file, the number of its first image in the split, its images in the part."""

    file: str
    first: int
    images: range


class SampleFormat(NamedTuple):
    """The shape and classes that every sample must have, and the encoding of its image."""

    shape: tuple[int, int, int]
    classes: int
    encoding: str


def layout(split: str, counts: list[int], shard_images: int) -> list[list[ShardRange]]:
    """The planned shards of a split, part by part, numbered consecutively."""
    cuts, shards, first = [], 0, 0
    for count in counts:
        ranges = even(count, shard_images)
        cuts.append(
            [
                ShardRange(f"{split}-{shards + i:06d}.tar", first + images.start, images)
                for i, images in enumerate(ranges)
            ]
        )
        shards, first = shards + len(ranges), first + count
    return cuts


def record(folder: Path, cut: ShardRange) -> Shard:
    """The record of a shard, which is written after the shard was renamed into place.

    Raises:
        FileNotFoundError, ValidationError: there is none, or a damaged one.
    """
    return Shard.model_validate_json((folder / WORK / f"{cut.file}.json").read_bytes())


def finished(folder: Path, cut: ShardRange) -> Shard | None:
    """The record of a shard, if the shard exists in full length."""
    try:
        shard = record(folder, cut)
        complete = (folder / cut.file).stat().st_size == shard.bytes
    except (FileNotFoundError, ValidationError):
        return None
    return shard if complete else None


class BadImage(NamedTuple):
    """An image that cannot be packed: its shard, its number in the split, and the problem."""

    file: str
    number: int
    problem: str


@dataclass(frozen=True)
class BadImages:
    """The number of images of a part that cannot be packed, and the first of them."""

    count: int
    first: list[BadImage]


def write_part(part: Part, cuts: list[ShardRange], folder: Path, form: SampleFormat) -> BadImages:
    """Write some of the shards of a part, except those with a bad image; all images are checked."""
    read = part.open()
    count, first = 0, []
    for cut in cuts:
        if stopped() or count >= MANY:
            break
        bad = _write_shard(read, cut, folder, form)
        count += len(bad)
        first += bad[: REPORTED - len(first)]
    return BadImages(count, first)


def _write_shard(read: Callable[[int], Sample], cut: ShardRange, folder: Path, form: SampleFormat) -> list[BadImage]:
    """Write to a temporary path, rename, record. The same samples give the same bytes."""
    bad: list[BadImage] = []
    path = folder / cut.file
    # A process that outlives its killed parent by a moment must not write into the same file.
    temporary = folder / WORK / f"{cut.file}.{os.getpid()}"
    with writing(path, temporary):
        with temporary.open("wb") as file:
            tar = TarWriter(file)
            for number, index in enumerate(cut.images, cut.first):
                try:
                    image, label = read(index)
                    _check(image, label, form, f"image {number} of {cut.file}")
                except BadSample as error:
                    bad.append(BadImage(cut.file, number, str(error)))
                    if len(bad) >= MANY:
                        break
                    continue
                if bad:
                    continue
                if label >= 0:
                    tar.add(b"%08d.cls" % number, b"%d" % label)
                tar.add(b"%08d.%b" % (number, form.encoding.encode()), *encode(image, form.encoding))
            if bad:
                return bad
            digest = tar.close()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    shard = Shard(file=cut.file, images=len(cut.images), bytes=tar.size, sha256=digest)
    write_record(folder / WORK / f"{cut.file}.json", shard.model_dump_json())
    return bad


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """What the system refuses while ``path`` is written, as one line. However it ends, no temporary file is left.

    Raises:
        UserError: it cannot be written.
    """
    refused: OSError | None = None
    try:
        yield
    except OSError as error:
        refused = error
    finally:
        left = temporary is not None and not _removed(temporary)
    if refused is not None:
        raise UserError(
            f"{path} cannot be written ({refused.strerror or refused}). "
            + (f"{temporary} is left of it. " if left else "Nothing unfinished is left of it. ")
            + "Make room, or the folder writable; then the same command goes on."
        ) from refused


def _removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _check(image: np.ndarray, label: int, form: SampleFormat, where: str) -> None:
    if image.shape != form.shape or image.dtype != np.uint8:
        raise ValueError(f"{where}: {image.dtype} of shape {image.shape}, the source says {form.shape}")
    if label >= form.classes:
        raise BadSample(f"{where} has label {label}, but the source has {form.classes} classes. Correct the source.")


def encode(image: np.ndarray, encoding: str) -> tuple[bytes, ...]:
    """``(H, W, C)`` uint8 to the bytes of a .npy or .png file, in pieces."""
    if encoding == "npy":
        return _npy_header(image.shape), image.tobytes()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)).save(file, "PNG")
    return (file.getvalue(),)


@cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.empty(shape, np.uint8), allow_pickle=False)
    return file.getvalue()[: file.tell() - math.prod(shape)]


def write_record(path: Path, text: str) -> None:
    """Raises UserError if the file cannot be written. One that a crash of the machine loses is written again."""
    with writing(path):
        files.write_atomically(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"), durable=False)
