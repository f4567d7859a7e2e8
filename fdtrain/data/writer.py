"""Shards: which images each one holds, and writing it so that it is there in full or not at all."""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from fdtrain import files
from fdtrain.data.dataset import Shard
from fdtrain.data.processes import stopped
from fdtrain.data.sources.source import BadSample, Part, Sample, even
from fdtrain.data.tar_writer import TarWriter
from fdtrain.errors import UserError

WORK = ".packing"
"""Folder beside the shards for what is not finished, and for the records of what is."""

ENCODINGS = ("npy", "png")

REPORTED = 20
"""Bad images that are reported one by one."""
MANY = 1000
"""Bad images after which a part is given up: it is then not the images that are wrong, but the command."""


class Cut(NamedTuple):
    """One shard to be: its file, the number of its first image in the split, and its images in the part."""

    file: str
    first: int
    images: range


class Form(NamedTuple):
    """What every sample must be like, and how it is written."""

    shape: tuple[int, int, int]
    classes: int
    encoding: str


def layout(split: str, counts: list[int], shard_images: int) -> list[list[Cut]]:
    """The shards of a split, part by part, numbered throughout."""
    cuts, shards, first = [], 0, 0
    for count in counts:
        ranges = even(count, shard_images)
        cuts.append(
            [Cut(f"{split}-{shards + i:06d}.tar", first + images.start, images) for i, images in enumerate(ranges)]
        )
        shards, first = shards + len(ranges), first + count
    return cuts


def finished(folder: Path, cut: Cut) -> Shard | None:
    """The record of a shard that is there in full; it is written after the shard was renamed into place."""
    try:
        shard = Shard.model_validate_json((folder / WORK / f"{cut.file}.json").read_bytes())
        there = (folder / cut.file).stat().st_size == shard.bytes
    except (FileNotFoundError, ValidationError):
        return None
    return shard if there else None


class BadImage(NamedTuple):
    """An image that cannot be packed: its number in the split, its shard, and what is wrong with it."""

    file: str
    number: int
    problem: str


class BadImages(NamedTuple):
    """How many images of a part cannot be packed, and the first of them."""

    count: int
    first: list[BadImage]


def write_part(part: Part, cuts: list[Cut], folder: Path, form: Form) -> BadImages:
    """Write some of the shards of a part, except those that hold a bad image; all images are looked at."""
    read = part.open()
    count, first = 0, []
    for cut in cuts:
        if stopped() or count >= MANY:
            break
        bad = _write_shard(read, cut, folder, form)
        count += len(bad)
        first += bad[: REPORTED - len(first)]
    return BadImages(count, first)


def _write_shard(read: Callable[[int], Sample], cut: Cut, folder: Path, form: Form) -> list[BadImage]:
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


def _check(image: np.ndarray, label: int, form: Form, where: str) -> None:
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
