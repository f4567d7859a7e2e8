"""A data set before it is packed: its description, and parts that can be read independently."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fdtrain.data.dataset import MAX_CLASSES
from fdtrain.data.decode import BadSample
from fdtrain.data.sources.picture import Colour, Fit, fit_like
from fdtrain.errors import UserError, excerpt

Sample = tuple[bytes | np.ndarray, int, str]
"""A picture as :func:`picture.decode` takes it, its label (-1: none), and what it is called in messages."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
}
"""The names of splits among folders and files, and the corresponding names here."""


@dataclass(frozen=True)
class Part:
    """A contiguous part of a split that one process reads: a batch file, or some image files.

    It refers to images without containing them, so it is cheap to send to another process.

    Args:
        identity: what must be unchanged for a stopped pack to be resumed, without absolute paths. In a tuple the source
            adds its fit.
        images: their number, or what reads the file to tell it.
        open: its result maps ``0 <= index < count()`` to a sample, and is fastest in order. It raises BadSample if this
            one sample is broken; both raise UserError if the source is broken or not as published.
    """

    identity: str | tuple
    images: int | Callable[[], int]
    open: Callable[[], Callable[[int], Sample]]

    def count(self) -> int:
        return self.images if isinstance(self.images, int) else self.images()


@dataclass(frozen=True)
class Source:
    """A data set that can be packed.

    Args:
        fit: how pictures become images.
        published: the published number of images of each split, where known.
        notes: sentences to be printed on what the reader has skipped or decided.
    """

    name: str
    source: str
    fit: Fit
    classes: list[str]
    splits: Mapping[str, Sequence[Part]]
    levels: int = 256
    published: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def identity(self) -> str:
        """SHA-256 over the splits' parts."""
        digest = hashlib.sha256()
        for split, parts in self.splits.items():
            digest.update(split.encode())
            for part in parts:
                text = part.identity if isinstance(part.identity, str) else repr((*part.identity, self.fit))
                digest.update(text.encode())
        return digest.hexdigest()


def fit_like_first(
    parts: Iterable[Part], source: str, resize: int | None, channels: int | None, background: Colour | None = None
) -> Fit:
    """As :func:`fit_like`, by the first picture of a source that can be opened. Raises BadSample: none can be opened;
    the error of the first one. UserError: there are none; as :func:`fit_like`."""
    first: BadSample | None = None
    for part in parts:
        read = part.open()
        for index in range(part.count()):
            try:
                picture, _, where = read(index)
                return fit_like(picture, where, resize, channels, background)
            except BadSample as error:
                first = first or error
    raise first or UserError(f"{source} holds no images. Fetch it again.")


def numbered(largest: int, where: str) -> list[str]:
    """Class names for a source that has only numbers: from 0 to the largest. Raises UserError: the largest is too
    large, and the list would fill the memory."""
    if largest >= MAX_CLASSES:
        raise UserError(
            f"{where}: label {largest}, but at most {MAX_CLASSES} classes are possible. Correct the labels."
        )
    return [str(i) for i in range(largest + 1)]


def class_names(labels: Mapping[str, set[Any]], where: str) -> list[str]:
    """The classes by number, from the labels of every split, all numbers or all names: names are sorted. Raises
    UserError: too many; names that the train images lack."""
    every = set[Any]().union(*labels.values())
    if numbers := [label for label in every if isinstance(label, int)]:
        return numbered(max(numbers), where)
    if lacking := sorted(every - labels["train"]):
        raise UserError(f"the held-out images have classes that the train images lack: {excerpt(', '.join(lacking))}.")
    numbered(len(every), where)
    return sorted(every)


def hold_out_fewer(images: int) -> str:
    """Advice to who would hold out all of so many images: a tenth, at most 10,000."""
    return f"Hold out about {max(1, min(images // 10, 10_000)):,}." if images > 1 else "Leave out --holdout."


def even(images: int, share: int) -> list[range]:
    """Divide ``images`` into ranges of about ``share``, as even as possible; none if there are no images."""
    count = min(images, max(1, round(images / share)))
    ends = [0]
    for i in range(count):
        ends.append(ends[-1] + images // count + (i < images % count))
    return [range(a, b) for a, b in itertools.pairwise(ends)]
