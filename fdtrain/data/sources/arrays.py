"""Images and labels as numpy saves them: ``.npz`` files of both, and ``.npy`` files of one array each.

The names in use say what an array is: ``arr_0`` and ``arr_1`` (ADM, EDM), ``train_images`` and ``train_labels``
(MedMNIST), ``x_train`` and ``y_train`` (Keras), ``cifar10.1_v6_data.npy`` beside ``cifar10.1_v6_labels.npy``.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fdtrain.data.sources.picture import method
from fdtrain.data.sources.source import SPLIT_NAMES, Part, Sample, Source, even, fit_like_first, numbered
from fdtrain.data.sources.stored_arrays import StoredArray, stored_arrays
from fdtrain.errors import UserError

IMAGES = ("images", "image", "data", "x", "arr_0")
LABELS = ("labels", "label", "targets", "y", "arr_1")
STRETCH = 10_000
"""The images of a part, at least."""
PARTS = 8
"""The parts of an array, at most: a compressed array is inflated up to the part that is read."""


class ArrayChoice(NamedTuple):
    """What the user has chosen of a file.

    Args:
        images, labels: names of arrays in an npz; ``None``: those that their names tell. Empty labels mean none.
        split: the split that the images are of; ``None``: what the names say, or train.
        classes: names of the labels from 0 on; ``None``: their numbers.
        resize, channels: as for images in a folder.
    """

    images: str | None = None
    labels: str | None = None
    split: str | None = None
    classes: Sequence[str] | None = None
    resize: int | None = None
    channels: int | None = None


class Pair(NamedTuple):
    images: StoredArray
    labels: StoredArray | None


def arrays(path: Path, test: Path | None, name: str, choice: ArrayChoice) -> Source:
    """Every split of a file, images in the order they are stored in.

    Args:
        path: a ``.npz`` file, or the ``.npy`` file of the images, with its labels beside it or without any.
        test: likewise, the images of the split test.

    Raises:
        UserError: arrays that are missing, ambiguous or of other shapes and types than images and labels have.
    """
    splits = _splits(path, choice)
    if test:
        [pair, *more] = _splits(test, choice._replace(split=None)).values()
        if more or "test" in splits:
            raise UserError(f"{test if more else path} has splits of its own ({', '.join(splits)}). Pack it by itself.")
        splits["test"] = pair
    return array_source(splits, name, path, ", ".join(file.name for file in (path, test) if file), choice, STRETCH)


def array_source(
    splits: Mapping[str, Pair], name: str, path: Path, source: str, choice: ArrayChoice, stretch: int
) -> Source:
    """The images and labels of every split, in parts of at least ``stretch`` images. ``path`` is their place, for
    messages. Raises UserError: other shapes and types than images and labels have."""
    labels = {split: _labels(pair) for split, pair in splits.items()}
    present = [values for values in labels.values() if values is not None]
    if present and len(present) < len(labels):
        raise UserError(f"{path}: only some splits have labels. Pack without them by --labels ''.")
    largest = max((int(values.max()) for values in present if len(values)), default=-1)
    if choice.classes and largest >= len(choice.classes):
        raise UserError(f"--classes: {len(choice.classes)} names, but {path} has labels up to {largest}.")
    parts = {split: _parts(pair.images, labels[split], stretch) for split, pair in splits.items()}
    return Source(
        name=name,
        source=source + (f", {method(choice.resize)}" if choice.resize else ""),
        fit=fit_like_first(chain(*parts.values()), str(path), choice.resize, choice.channels),
        classes=[*choice.classes] if choice.classes and present else numbered(largest, str(path)),
        splits=parts,
    )


def _parts(images: StoredArray, labels: np.ndarray | None, stretch: int) -> list[Part]:
    stretches = even(images.count, max(stretch, images.count // PARTS))
    return [_part(images, s, None if labels is None else labels[s.start : s.stop]) for s in stretches]


def _part(images: StoredArray, stretch: range, labels: np.ndarray | None) -> Part:
    """A range of the images of one array, with their labels."""
    member, digest = images.member, None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest()
    identity = member.name, member.size, images.shape, stretch, digest
    return Part(identity, len(stretch), partial(_open, images, stretch, labels))


def _open(images: StoredArray, stretch: range, labels: np.ndarray | None) -> Callable[[int], Sample]:
    """Reads one after another; going back begins anew."""
    entries, following, name = images.entries(stretch), 0, str(images)

    def read(index: int) -> Sample:
        nonlocal entries, following
        if index < following:
            entries, following = images.entries(stretch), 0
        pixels = next(islice(entries, index - following, None))
        following = index + 1
        return pixels, -1 if labels is None else int(labels[index]), f"{name}, image {stretch[index]}"

    return read


def _splits(path: Path, choice: ArrayChoice) -> dict[str, Pair]:
    """The images and labels of each split. Raises UserError: several arrays could be either, or none is."""
    found = stored_arrays(path)
    if path.suffix == ".npy":
        found |= _labels_beside(path)
    images = [choice.images] if choice.images else _named(found, IMAGES) or _only_images(found)
    labels = [label for label in [choice.labels] if label] if choice.labels is not None else _named(found, LABELS)
    for key in (*images, *labels):
        if key not in found:
            raise UserError(f"{path} has no array '{key}' (it has: {', '.join(found)}).")
    # Labels that are chosen are those of the images.
    every = choice.split or (_split(images[0], path) if choice.labels and images else None)
    pairs = {}
    for split in ("train", "valid", "test"):
        of_split = [[key for key in keys if (every or _split(key, path)) == split] for keys in (images, labels)]
        for option, keys in zip(("images", "labels"), of_split, strict=True):
            if len(keys) > 1:
                raise UserError(f"{path}: {option} of '{split}' could be {', '.join(keys)}. Choose with --{option}.")
        pictures, labelled = of_split
        if pictures:
            pairs[split] = Pair(found[pictures[0]], found[labelled[0]] if labelled else None)
    if not pairs:
        listed = ", ".join(f"{key} {array.shape}" for key, array in found.items())
        raise UserError(f"{path}: none of its arrays can be told to be the images ({listed}). Choose with --images.")
    return pairs


def _named(keys: Iterable[str], words: Sequence[str]) -> list[str]:
    """Those whose names have one of the words."""
    return [key for key in keys if key in words or set(_words(key)) & set(words)]


def _only_images(found: Mapping[str, StoredArray]) -> list[str]:
    keys = [key for key, array in found.items() if array.dtype == np.uint8 and len(array.shape) in (3, 4)]
    return keys if len(keys) == 1 else []


def _split(key: str, path: Path) -> str:
    """What the name of an array says, or that of its file, or train."""
    return next((SPLIT_NAMES[word] for word in _words(key) + _words(path.stem) if word in SPLIT_NAMES), "train")


def _words(name: str) -> list[str]:
    return re.split(r"[_\-. ]", name.lower())


def _labels_beside(path: Path) -> dict[str, StoredArray]:
    """The labels in the file whose name differs from that of the images by one word."""
    for word in IMAGES:
        for other in LABELS:
            name = re.sub(rf"(?<![a-z]){word}(?![a-z])", other, path.stem)
            if name != path.stem and (beside := path.with_name(f"{name}.npy")).is_file():
                return stored_arrays(beside)
    return {}


def _labels(pair: Pair) -> np.ndarray | None:
    """int64, -1 for none."""
    if pair.labels is None:
        return None
    array, count = pair.labels, pair.images.count
    if array.dtype.kind not in "iub" or array.shape not in ((count,), (count, 1)):
        raise UserError(
            f"{array}: labels of {array.dtype} of shape {array.shape}, expected a whole number for each of {count} "
            "images. Fetch both again, or choose other labels (--labels)."
        )
    values = array.load().reshape(count)
    if array.dtype.kind == "u" and count and values.max() > np.iinfo(np.int64).max:
        raise UserError(f"{array}: label {values.max()}. Correct it.")
    return np.maximum(values.astype(np.int64), -1)
