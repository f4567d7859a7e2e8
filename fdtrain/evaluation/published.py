"""Known figures, for the report to stand beside a run's: only on the same data set (docs/method.md, section 8).

The two ImageNet-32, *old* (van den Oord's, withdrawn) and *new* (box-resized), are different data sets.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from fdtrain.data.dataset import DatasetDescription
from fdtrain.evaluation.wording import with_error

PUBLISHED = Path(__file__).with_name("published.csv")
"""By the name that ``fdtrain pack`` gives a data set; bits/dim and FID as the source prints them."""
COMPARISON = Path(__file__).with_name("digits.csv")
"""The table of our comparison on the digits as it was written; docs/lab/comparisons/ has a link to it."""
COLOUR = (3, 32, 32), 256
IMAGES = {"cifar10": COLOUR, "imagenet32-old": COLOUR, "imagenet32-new": COLOUR, "digits": ((1, 8, 8), 17)}
"""Shape and levels of their images: another data set may bear the same name."""


@dataclass(frozen=True)
class PublishedResult:
    """One model's figures on one data set, as its source gives them; ``how`` is its likelihood and dequantisation."""

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
    keys = ("model", "bits_per_dim", "fid", "how", "source")
    found = [PublishedResult(*(row[key] for key in keys)) for row in _rows(PUBLISHED) if row["dataset"] == data.name]
    return found + ([_compared(row) for row in _rows(COMPARISON)] if data.name == "digits" else [])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _compared(row: dict[str, str]) -> PublishedResult:
    """A variant of our comparison, by its own bound."""
    bits = with_error(float(row["own_bound_bits_per_dim"]), float(row["own_bound_error_seeds"]), 4)
    interval = f"[{float(row['t_min']):.3g}, {float(row['t_max']):.6g}]"
    how = f"bound on {interval}, {row['dequantisation']}; {row['seeds']} seeds of {row['steps']} steps"
    return PublishedResult(row["variant"], bits, "", how, "fdtrain, docs/lab/comparison.md")
