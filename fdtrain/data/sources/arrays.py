"""Images and labels as numpy saves them: ``.npz`` files of both, and ``.npy`` files of one array each.

The names in use say what an array is: ``arr_0`` and ``arr_1`` (ADM, EDM), ``train_images`` and ``train_labels``
(MedMNIST), ``x_train`` and ``y_train`` (Keras), ``cifar10.1_v6_data.npy`` beside ``cifar10.1_v6_labels.npy``.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fdtrain.data.sources.picture import Fit, channels_last, decode, fit_like, method
from fdtrain.data.sources.source import SPLIT_NAMES, Part, Sample, Source, even, numbered
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
    messages. Raises UserError: other shapes and types than images and labels have, or other ones in each split."""
    fits = {split: _fit(pair.images, choice) for split, pair in splits.items()}
    if len(set(fits.values())) > 1:
        shapes = ", ".join(f"{split} {pair.images.shape}" for split, pair in splits.items())
        raise UserError(f"{path}: splits of different shapes ({shapes}). Ask for one by --size or --channels.")
    labels = {split: _labels(pair) for split, pair in splits.items()}
    present = [values for values in labels.values() if values is not None]
    if present and len(present) < len(labels):
        raise UserError(f"{path}: only some splits have labels. Pack without them by --labels ''.")
    largest = max((int(values.max()) for values in present if len(values)), default=-1)
    if choice.classes and largest >= len(choice.classes):
        raise UserError(f"--classes: {len(choice.classes)} names, but {path} has labels up to {largest}.")
    [fit] = set(fits.values())
    change = f", {method(choice.resize)}" if choice.resize else ""
    return Source(
        name=name,
        source=source + change,
        size=fit.size,
        channels=fit.channels,
        classes=[*choice.classes] if choice.classes and present else numbered(largest, str(path)),
        splits={split: _parts(pair.images, labels[split], fit, stretch) for split, pair in splits.items()},
    )


def _parts(images: StoredArray, labels: np.ndarray | None, fit: Fit, stretch: int) -> list[Part]:
    count = images.shape[0]
    stretches = even(count, max(stretch, count // PARTS))
    return [_part(images, s, None if labels is None else labels[s.start : s.stop], fit) for s in stretches]


def _part(images: StoredArray, stretch: range, labels: np.ndarray | None, fit: Fit) -> Part:
    """A range of the images of one array, with their labels."""
    member, digest = images.member, None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest()
    identity = repr((member.name, member.size, images.shape, stretch, digest, fit))
    return Part(identity, len(stretch), partial(_open, images, stretch, labels, fit))


def _open(images: StoredArray, stretch: range, labels: np.ndarray | None, fit: Fit) -> Callable[[int], Sample]:
    """Reads one after another; going back begins anew."""
    entries, following, unchanged = images.entries(stretch), 0, fit.same(images.like)

    def read(index: int) -> Sample:
        nonlocal entries, following
        if index < following:
            entries, following = images.entries(stretch), 0
        pixels = next(islice(entries, index - following, None))
        following = index + 1
        image = channels_last(pixels) if unchanged else decode(pixels, f"{images}, image {stretch[index]}", fit)
        return image, -1 if labels is None else int(labels[index])

    return read


def _splits(path: Path, choice: ArrayChoice) -> dict[str, Pair]:
    """The images and labels of each split. Raises UserError: several arrays could be either, or none is."""
    found = stored_arrays(path)
    if path.suffix == ".npy":
        found |= _labels_beside(path)
    images = {key: split for key in found if (split := _role(key, IMAGES, path))} or _only_images(found, path)
    if choice.images is not None:
        images = {choice.images: _split(choice.images, path)}
    labels = {key: split for key in found if (split := _role(key, LABELS, path))}
    if choice.labels is not None:
        labels = dict.fromkeys([choice.labels], *images.values()) if choice.labels and len(images) == 1 else {}
        if choice.labels and not labels:
            raise UserError(f"--labels {choice.labels}: {path} has several splits; choose one's images by --images.")
    for key in (*images, *labels):
        if key not in found:
            raise UserError(f"{path} has no array '{key}' (it has: {', '.join(found)}).")
    if choice.split:
        if len(images) > 1:
            raise UserError(f"--split {choice.split}: {path} has images of several splits ({', '.join(images)}).")
        images, labels = dict.fromkeys(images, choice.split), dict.fromkeys(labels, choice.split)
    pairs = {}
    for split in ("train", "valid", "test"):
        of_split = [key for key in images if images[key] == split]
        labelled = [key for key in labels if labels[key] == split]
        for option, keys in (("images", of_split), ("labels", labelled)):
            if len(keys) > 1:
                raise UserError(f"{path}: {option} of '{split}' could be {', '.join(keys)}. Choose with --{option}.")
        if of_split:
            pairs[split] = Pair(found[of_split[0]], found[labelled[0]] if labelled else None)
    if not pairs:
        listed = ", ".join(f"{key} {array.shape}" for key, array in found.items())
        raise UserError(f"{path}: none of its arrays can be told to be the images ({listed}). Choose with --images.")
    return pairs


def _role(key: str, words: Sequence[str], path: Path) -> str | None:
    """The split of an array whose name has one of the words, if it does: what the name says, or what the file's name
    does, or train."""
    return _split(key, path) if key in words or set(_words(key)) & set(words) else None


def _split(key: str, path: Path) -> str:
    return next((SPLIT_NAMES[word] for word in _words(key) + _words(path.stem) if word in SPLIT_NAMES), "train")


def _words(name: str) -> list[str]:
    return re.split(r"[_\-. ]", name.lower())


def _only_images(found: Mapping[str, StoredArray], path: Path) -> dict[str, str]:
    keys = [key for key, array in found.items() if array.dtype == np.uint8 and len(array.shape) in (3, 4)]
    return {keys[0]: _split(keys[0], path)} if len(keys) == 1 else {}


def _labels_beside(path: Path) -> dict[str, StoredArray]:
    """The labels in the file whose name differs from that of the images by one word."""
    for word in IMAGES:
        for other in LABELS:
            name = re.sub(rf"(?<![a-z]){word}(?![a-z])", other, path.stem)
            if name != path.stem and (beside := path.with_name(f"{name}.npy")).is_file():
                return stored_arrays(beside)
    return {}


def _fit(images: StoredArray, choice: ArrayChoice) -> Fit:
    if images.dtype != np.uint8 or len(images.shape) not in (3, 4):
        raise UserError(
            f"{images}: an array of {images.dtype} of shape {images.shape}; images are uint8, of number x height x "
            "width (x 1 or 3 channels). Convert it."
        )
    return fit_like(images.like, str(images), choice.resize, choice.channels)


def _labels(pair: Pair) -> np.ndarray | None:
    """int64, -1 for none."""
    if pair.labels is None:
        return None
    array, count = pair.labels, pair.images.shape[0]
    if array.dtype.kind not in "iub" or array.shape not in ((count,), (count, 1)):
        raise UserError(
            f"{array}: labels of {array.dtype} of shape {array.shape}, expected a whole number for each of {count} "
            "images. Choose others by --labels, or none by --labels ''."
        )
    values = array.load().reshape(count)
    if array.dtype.kind == "u" and count and values.max() > np.iinfo(np.int64).max:
        raise UserError(f"{array}: label {values.max()}. Correct it.")
    return np.maximum(values.astype(np.int64), -1)
