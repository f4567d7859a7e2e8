"""Sums of features in float64, which add up over batches and ranks: all that a Frechet distance needs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over the ranks, in place."""


@dataclass(frozen=True)
class Gaussian:
    """Mean ``(dims,)`` and covariance ``(dims, dims)`` of features, float64."""

    mean: Tensor
    covariance: Tensor


class Moments:
    """Mean and covariance of features ``(n, dims)``, from their sum and the sum of their outer products.

    Features are of about unit size, so float64 sums lose nothing that a distance would show.
    """

    def __init__(self, dims: int, device: torch.device | str = "cpu"):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(dims, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dims, dims, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer.addmm_(features.T, features)

    def merge(self, other: "Moments") -> None:
        for own, added in zip(self.sums, other.sums):
            own += added

    def reduce(self, reduce: Reduce) -> None:
        for part in self.sums:
            reduce(part)

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.count, self.total, self.outer

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased, ``(dims, dims)``; of one image alone, zero."""
        centred = self.outer - torch.outer(self.total, self.mean)
        return centred / (self.count - 1).clamp(min=1)


class ClassScores:
    """What the Inception Score needs of class probabilities ``(n, classes)``, by tenths of the images.

    Args:
        images: that will be added in all; image ``i`` belongs to part ``10 i / images``.
    """

    PARTS = 10

    def __init__(self, classes: int, images: int, device: torch.device | str = "cpu"):
        self.images = images
        self.total = torch.zeros(self.PARTS, classes, dtype=torch.float64, device=device)
        self.negentropy = torch.zeros(self.PARTS, dtype=torch.float64, device=device)
        self.count = torch.zeros(self.PARTS, dtype=torch.float64, device=device)

    def add(self, first: int, probabilities: Tensor) -> None:
        """Probabilities of images from number ``first`` on."""
        p = probabilities.double()
        part = torch.arange(first, first + len(p), device=p.device) * self.PARTS // self.images
        self.total.index_add_(0, part, p)
        self.negentropy.index_add_(0, part, torch.special.xlogy(p, p).sum(1))
        self.count.index_add_(0, part, torch.ones_like(part, dtype=torch.float64))

    def reduce(self, reduce: Reduce) -> None:
        for part in (self.total, self.negentropy, self.count):
            reduce(part)
