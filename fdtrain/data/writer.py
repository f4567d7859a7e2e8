"""Writes shards, complete or absent: which images go into which, their description, and what to do about bad images."""

import io
import itertools
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from fdtrain.data import shard_index
from fdtrain.data.dataset import FILE, VERSION, DatasetDescription
from fdtrain.data.decode import IMAGES, BadSample
from fdtrain.data.shard_store import ShardStore
from fdtrain.data.shard_table import Shard
from fdtrain.data.sources.picture import Fit, decode
from fdtrain.data.sources.source import Part, Sample, even
from fdtrain.data.tar import TarWriter
from fdtrain.data.workers import stopped
from fdtrain.errors import UserError, excerpt

ENCODINGS = ("npy", "png")

REPORTED = 20
"""Bad images that are reported one by one."""
MANY = 1000
"""Bad images after which all is abandoned: then the command is wrong rather than the images."""

Problem = tuple[str, int, str]
"""An image that cannot be used: its shard, its number there, and why."""


class ShardRange(NamedTuple):
    """The images of one planned shard: its file, the number of its first image in the split, its images in the part."""

    file: str
    first: int
    images: range


class SampleFormat(NamedTuple):
    """How pictures become images, the number of classes, and the encoding of an image."""

    fit: Fit
    classes: int
    encoding: str


def layout(split: str, counts: list[int], shard_images: int) -> list[list[ShardRange]]:
    """The planned shards of a split, part by part, numbered consecutively."""
    parts, files, first = [], (f"{split}-{number:06d}.tar" for number in itertools.count()), 0
    for count in counts:
        parts.append([ShardRange(next(files), first + images.start, images) for images in even(count, shard_images)])
        first += count
    return parts


@contextmanager
def describing() -> Iterator[None]:
    """In this context what ``dataset.json`` does not admit is a UserError."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{excerpt(repr(first['input']))} cannot stand in {FILE} as {excerpt(place)} ({excerpt(first['msg'])}). "
            "Rename or correct it."
        ) from None


def describe(splits: Iterable[str], **properties: Any) -> DatasetDescription:
    """A description without its shards, in the context :func:`describing`. The names of the splits are checked too."""
    described = DatasetDescription.model_validate(
        {"version": VERSION, "splits": dict.fromkeys(splits, ()), **properties}
    )
    return described.model_copy(update={"splits": {}})


def refuse(problems: list[Problem], images: str) -> None:
    """Raises UserError if there are problems with these ``images``: their number, and a line for each of the first."""
    if not problems:
        return
    lines = [why for *_, why in sorted(problems)[:REPORTED]]
    count = f"{len(problems)} images" if len(problems) < MANY else f"{MANY} images or more (others were not checked)"
    which = "They are:" if len(lines) == len(problems) else f"The first {len(lines)}:"
    raise UserError([f"{count} of {images} cannot be packed. {which}", *lines] if len(problems) > 1 else lines)


def write_part(part: Part, cuts: list[ShardRange], store: ShardStore, form: SampleFormat) -> tuple[int, list[Problem]]:
    """Write some of the shards of a part, except those with a bad image; all images are checked. Their number."""
    read, problems = part.open(), list[Problem]()
    for cut in cuts:
        if stopped() or len(problems) >= MANY:
            break
        problems += _write_shard(read, cut, store, form)
    return sum(len(cut.images) for cut in cuts), problems


def _write_shard(
    read: Callable[[int], Sample], cut: ShardRange, store: ShardStore, form: SampleFormat
) -> list[Problem]:
    """Write to a temporary path, its index, rename, record. The same samples give the same bytes."""
    samples, problems = array("q"), list[Problem]()
    path = store.shards / cut.file
    # A process that outlives its killed parent by a moment must not write into the same file.
    temporary = store.folder / f"{cut.file}.{os.getpid()}"
    with store.writing(path):
        try:
            with temporary.open("wb") as file:
                tar, suffix, kind = TarWriter(file), form.encoding.encode(), IMAGES.index(form.encoding)
                for number, index in enumerate(cut.images, cut.first):
                    try:
                        picture, label, where = read(index)
                        image = decode(picture, where, form.fit)
                        if label >= form.classes:
                            raise BadSample(
                                f"{where} has label {label}, but there are {form.classes} classes. Correct it."
                            )
                    except BadSample as error:
                        problems.append((cut.file, number, str(error)))
                        if len(problems) >= MANY:
                            break
                        continue
                    if label >= 0:
                        tar.add(b"%08d.cls" % number, b"%d" % label)
                    place = tar.add(b"%08d.%b" % (number, suffix), *encode(image, form.encoding))
                    samples.extend((kind, label, *place))
                digest = tar.close()
                if problems:
                    return problems
                os.fsync(file.fileno())
            shard = Shard(file=cut.file, images=len(cut.images), bytes=tar.size, sha256=digest)
            shard_index.write(shard_index.place(store.shards, cut.file), shard_index.content(shard, IMAGES, samples))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    store.save(shard)
    return []


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
