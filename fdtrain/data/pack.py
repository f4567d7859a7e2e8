"""Published sources to WebDataset shards and their ``dataset.json``."""

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from fdtrain.data.dataset import VERSION, Description, Shard, write_description
from fdtrain.randomness import Purpose, stream

Labelled = Iterable[tuple[np.ndarray, int]]
"""Images ``(H, W, C)`` uint8 with their labels."""


def write_split(folder: Path, split: str, images: int, samples: Labelled, shard_images: int) -> list[Shard]:
    """Write ``samples`` (``images`` of them) into shards of about ``shard_images``, as even as can be.

    Each shard is written aside and renamed, with fixed times and owners: the same samples give the same bytes.
    """
    count = max(1, round(images / shard_images))
    sizes = [images // count + (i < images % count) for i in range(count)]
    samples, shards = iter(samples), []
    for number, size in enumerate(sizes):
        name = f"{split}-{number:06d}.tar"
        aside = folder / f".{name}"
        with aside.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for index in range(size):
                image, label = next(samples)
                key = f"{sum(sizes[:number]) + index:08d}"
                tar.write({"__key__": key, "npy": _npy(image), "cls": str(label).encode()})
        data = aside.read_bytes()
        shards.append(Shard(file=name, images=size, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        os.replace(aside, folder / name)
    return shards


def _npy(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(image), allow_pickle=False)
    return file.getvalue()


def pack_digits(folder: str | Path, shard_images: int = 100) -> Description:
    """scikit-learn's 1,797 real 8x8 handwritten digits (17 grey levels, labels), 1,497 to train and 300 to test.

    The data come with scikit-learn (the test part of the UCI "Optical Recognition of Handwritten Digits"
    set); the split is a fixed permutation.
    """
    from sklearn.datasets import load_digits

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    order = stream(0, Purpose.SPLIT).permutation(len(digits.target))
    images, labels = digits.images.astype(np.uint8)[order, :, :, None], digits.target[order].tolist()
    splits = {}
    for split, part in (("train", slice(0, 1497)), ("test", slice(1497, None))):
        samples = list(zip(images[part], labels[part], strict=True))
        splits[split] = write_split(folder, split, len(samples), samples, shard_images)
    description = Description(
        version=VERSION,
        name="digits",
        source="scikit-learn load_digits",
        size=8,
        channels=1,
        levels=17,
        classes=[str(i) for i in range(10)],
        encoding="npy",
        splits=splits,
    )
    write_description(folder, description)
    return description
