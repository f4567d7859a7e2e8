"""Writes shards: which images go into which shard, and shards that are complete or absent."""

import io
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from fdtrain.data import shard_index
from fdtrain.data.decode import IMAGES
from fdtrain.data.shard_store import ShardStore
from fdtrain.data.shard_table import Shard
from fdtrain.data.sources.source import BadSample, Part, Sample, even
from fdtrain.data.tar import TarWriter
from fdtrain.data.workers import stopped

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


class Problems:
    """Images that cannot be used: their number by kind, and the first of each by their places."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.first: dict[str, list[tuple[str, int, str]]] = {}

    def add(self, file: str, number: int, problem: str, kind: str = "bad") -> None:
        """The problem of one image of a shard."""
        self._add(kind, 1, [(file, number, problem)])

    def update(self, others: "Problems") -> None:
        for kind, count in others.counts.items():
            self._add(kind, count, others.first[kind])

    def _add(self, kind: str, count: int, first: list[tuple[str, int, str]]) -> None:
        self.counts[kind] += count
        self.first[kind] = sorted([*self.first.get(kind, []), *first])[:REPORTED]

    def told(self, what: str) -> list[str]:
        """A line for each of the first bad images, after one that says of how many; none if there are none."""
        count, lines = self.counts["bad"], [problem for *_, problem in self.first.get("bad", [])]
        shown = f"The first {len(lines)}:" if count > len(lines) else "They are:"
        return [*([f"{what}. {shown}"] if count > 1 else []), *lines]


def write_part(part: Part, cuts: list[ShardRange], store: ShardStore, form: SampleFormat) -> tuple[int, Problems]:
    """Write some of the shards of a part, except those with a bad image; all images are checked. Their number."""
    read, problems = part.open(), Problems()
    for cut in cuts:
        if stopped() or problems.counts["bad"] >= MANY:
            break
        _write_shard(read, cut, store, form, problems)
    return sum(len(cut.images) for cut in cuts), problems


def _write_shard(
    read: Callable[[int], Sample], cut: ShardRange, store: ShardStore, form: SampleFormat, problems: Problems
) -> None:
    """Write to a temporary path, its index, rename, record. The same samples give the same bytes."""
    samples, bad = array("q"), False
    path = store.shards / cut.file
    # A process that outlives its killed parent by a moment must not write into the same file.
    temporary = store.folder / f"{cut.file}.{os.getpid()}"
    with store.writing(path):
        try:
            with temporary.open("wb") as file:
                tar, suffix, kind = TarWriter(file), form.encoding.encode(), IMAGES.index(form.encoding)
                for number, index in enumerate(cut.images, cut.first):
                    try:
                        image, label = read(index)
                        _check(image, label, form, f"image {number} of {cut.file}")
                    except BadSample as error:
                        bad = True
                        problems.add(cut.file, number, str(error))
                        if problems.counts["bad"] >= MANY:
                            break
                        continue
                    if bad:
                        continue
                    if label >= 0:
                        tar.add(b"%08d.cls" % number, b"%d" % label)
                    place = tar.add(b"%08d.%b" % (number, suffix), *encode(image, form.encoding))
                    samples.extend((kind, label, *place))
                if bad:
                    return
                digest = tar.close()
                os.fsync(file.fileno())
            shard = Shard(file=cut.file, images=len(cut.images), bytes=tar.size, sha256=digest)
            shard_index.write(shard_index.place(store.shards, cut.file), shard_index.content(shard, IMAGES, samples))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    store.save(shard)


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
