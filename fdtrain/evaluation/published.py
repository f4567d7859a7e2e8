"""Known figures, for the report to stand beside a run's: only on the same data set (docs/method.md, section 8).

The two ImageNet-32, *old* (van den Oord's, withdrawn) and *new* (box-resized), are different data sets. Those of the
digits are our own comparison's, by each variant's own bound.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from fdtrain.data.dataset import DatasetDescription

FILE = Path(__file__).with_name("published.csv")
"""By the name that ``fdtrain pack`` gives a data set; bits/dim and FID as the source prints them."""
COLOUR = (3, 32, 32), 256
IMAGES = {"cifar10": COLOUR, "imagenet32-old": COLOUR, "imagenet32-new": COLOUR, "digits": ((1, 8, 8), 17)}
"""Shape and levels of their images: another data set may bear the same name."""


class PublishedResult(NamedTuple):
    """One model's figures on one data set, as its source gives them; ``how`` is its likelihood and dequantisation."""

    dataset: str
    model: str
    bits_per_dim: str
    fid: str
    how: str
    source: str

    @property
    def link(self) -> str | None:
        """The address of a paper on arXiv."""
        _, found, number = self.source.partition("arXiv:")
        return f"https://arxiv.org/abs/{number}" if found else None


def known_figures(data: DatasetDescription) -> list[PublishedResult]:
    """Of this very data set."""
    if IMAGES.get(data.name) != (data.shape, data.levels):
        return []
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [PublishedResult(**row) for row in csv.DictReader(file)]
    return [row for row in rows if row.dataset == data.name]
