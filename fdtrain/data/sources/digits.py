"""scikit-learn's handwritten digits: the data set that needs no download."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fdtrain.data.sources.source import Sample, Source


@dataclass(frozen=True)
class Digits:
    """One split, small enough to be sent to another process as a whole."""

    images: np.ndarray
    labels: np.ndarray

    def count(self) -> int:
        return len(self.images)

    def open(self) -> Callable[[int], Sample]:
        return lambda index: (self.images[index], int(self.labels[index]))

    def identity(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def digits() -> Source:
    """1,797 real 8x8 images of 17 grey levels, 1,497 to train and 300 to test.

    The data come with scikit-learn (the test part of the UCI "Optical Recognition of Handwritten Digits"
    set); the split is a fixed permutation.
    """
    # Both take seconds to import, which every worker process would repeat.
    from sklearn.datasets import load_digits

    from fdtrain.randomness import Purpose, stream

    pixels, targets = map(np.asarray, load_digits(return_X_y=True))
    order = stream(0, Purpose.SPLIT).permutation(len(targets))
    images, labels = pixels.reshape(-1, 8, 8, 1).astype(np.uint8)[order], targets[order]
    return Source(
        name="digits",
        source="scikit-learn load_digits",
        size=8,
        channels=1,
        levels=17,
        classes=[str(i) for i in range(10)],
        splits={"train": [Digits(images[:1497], labels[:1497])], "test": [Digits(images[1497:], labels[1497:])]},
        published={"train": 1497, "test": 300},
    )
