"""Known figures, for the report to stand beside a run's: only on the same data set (docs/method.md, section 8).

The two ImageNet-32, *old* (van den Oord's, withdrawn) and *new* (box-resized), are different data sets.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from fdtrain.data.dataset import DatasetDescription
from fdtrain.evaluation.wording import with_error


@dataclass(frozen=True)
class PublishedResult:
    """One model's figures on one data set, as its source gives them; ``how`` is its likelihood and dequantisation."""

    model: str
    bits_per_dim: str | None
    fid: str | None
    how: str
    source: str

    @property
    def link(self) -> str | None:
        """The address of a paper on arXiv."""
        _, found, number = self.source.partition("arXiv:")
        return f"https://arxiv.org/abs/{number}" if found else None


CIFAR10, OLD, NEW, DIGITS = "cifar10", "imagenet32-old", "imagenet32-new", "digits"

SDE, SCOREFLOW = "Song et al. 2021, arXiv:2011.13456", "Song et al. 2021, arXiv:2101.09258"
VDM, TRUNCATION = "Kingma et al. 2021, arXiv:2107.00630", "Kim et al. 2022, arXiv:2106.05527"
FLOW, DODE = "Lipman et al. 2023, arXiv:2210.02747", "Zheng et al. 2023, arXiv:2305.03935"
MULAN, EDM = "Sahoo et al. 2024, arXiv:2312.13236", "Karras et al. 2022, arXiv:2206.00364"

MEASURED, COMPARED = "fdtrain, docs/lab/performance.md", "fdtrain, docs/lab/comparison.md"

COMPARISON = Path(__file__).with_name("digits.csv")
"""The table of our comparison on the digits as it was written; docs/lab/comparisons/ has a link to it."""

FIGURES: dict[str, list[PublishedResult]] = {
    CIFAR10: [
        PublishedResult("DDPM++ cont. VP", "3.16", "2.55", "ODE, uniform", SDE),
        PublishedResult("DDPM++ cont. deep sub-VP", "2.99", "2.41", "ODE, uniform", SDE),
        PublishedResult("ScoreFlow", "2.83", "5.34", "ODE, variational", SCOREFLOW),
        PublishedResult("VDM", "2.65", "7.41", "ELBO, discrete", VDM),
        PublishedResult("Soft Truncation DDPM++ VP", "3.03", "2.47", "ODE, uniform", TRUNCATION),
        PublishedResult("Flow Matching OT", "2.99", "6.35", "ODE, uniform, importance-weighted", FLOW),
        PublishedResult("i-DODE", "2.56", "11.20", "ODE, truncated normal", DODE),
        PublishedResult("MuLAN", "2.55", "17.6", "ODE, truncated normal, 20 samples", MULAN),
        PublishedResult("EDM", None, "1.97", "no likelihood", EDM),
    ],
    OLD: [
        PublishedResult("ScoreFlow", "3.76", "11.20", "ODE, variational", SCOREFLOW),
        PublishedResult("VDM", "3.72", None, "ELBO, discrete", VDM),
        PublishedResult("Soft Truncation DDPM++ VP", "3.90", "8.42", "ODE, uniform", TRUNCATION),
        PublishedResult("i-DODE", "3.69", None, "ODE, truncated normal", DODE),
        PublishedResult("MuLAN", "3.67", "13.2", "ODE, truncated normal, 20 samples", MULAN),
    ],
    NEW: [
        PublishedResult("Flow Matching OT", "3.53", "5.02", "ODE, uniform, importance-weighted", FLOW),
        PublishedResult("i-DODE", "3.43", None, "ODE, truncated normal", DODE),
    ],
    DIGITS: [
        PublishedResult(
            "Gaussian mixture, full covariances",
            "2.59",
            None,
            "density; the best of 10, 20 and 30 components",
            MEASURED,
        ),
    ],
}
"""By the name that ``fdtrain pack`` gives a data set."""

IMAGES = dict.fromkeys((CIFAR10, OLD, NEW), ((3, 32, 32), 256)) | {DIGITS: ((1, 8, 8), 17)}
"""Shape and levels of their images: another data set may bear the same name."""


def known_figures(data: DatasetDescription) -> list[PublishedResult]:
    """Of this very data set."""
    if IMAGES.get(data.name) != (data.shape, data.levels):
        return []
    return FIGURES[data.name] + (_compared() if data.name == DIGITS else [])


def _compared() -> list[PublishedResult]:
    """The variants of our comparison, each by its own bound."""
    with COMPARISON.open(encoding="utf-8", newline="") as file:
        return [_variant(row) for row in csv.DictReader(file)]


def _variant(row: dict[str, str]) -> PublishedResult:
    bits = with_error(float(row["own_bound_bits_per_dim"]), float(row["own_bound_error_seeds"]), 4)
    interval = f"[{float(row['t_min']):.3g}, {float(row['t_max']):.6g}]"
    how = f"bound on {interval}, {row['dequantisation']}; {row['seeds']} seeds of {row['steps']} steps"
    return PublishedResult(row["variant"], bits, None, how, COMPARED)
