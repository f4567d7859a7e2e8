"""scikit-learn's handwritten digits: the data set that needs no download."""

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from fdtrain.data.sources.picture import exactly
from fdtrain.data.sources.source import Part, Sample, Source


def in_memory(images: np.ndarray, labels: np.ndarray) -> Part:
    """Images that are few enough to be sent to another process as a whole."""
    identity = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Part(identity, len(images), partial(_open, images, labels))


def _open(images: np.ndarray, labels: np.ndarray) -> Callable[[int], Sample]:
    return lambda index: (images[index], int(labels[index]), f"image {index}")


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
        fit=exactly(8, 1),
        levels=17,
        classes=[str(i) for i in range(10)],
        splits={"train": [in_memory(images[:1497], labels[:1497])], "test": [in_memory(images[1497:], labels[1497:])]},
        published={"train": 1497, "test": 300},
    )
