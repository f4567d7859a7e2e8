"""A density of times that is learned: constant over bins of another one's quantile (docs/method.md, section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from fdtrain.diffusion.clocks import TimeDensity

PRIOR_DRAWS = 2.0
"""Draws of the mean variance that each bin's own are joined by, as long as they are few."""


@dataclass(frozen=True)
class Piecewise:
    """``q(t) = K m_k base(t)``: each of ``K`` equal parts of the quantile of ``base`` has a probability ``m_k``."""

    base: TimeDensity
    masses: tuple[float, ...]

    @staticmethod
    def like(base: TimeDensity, bins: int) -> "Piecewise":
        """The same density as ``base``, in ``bins`` parts."""
        return Piecewise(base, (1 / bins,) * bins)

    @property
    def bins(self) -> int:
        return len(self.masses)

    @cached_property
    def _edges(self) -> Tensor:
        """The distribution function at the bins' edges, ``(K + 1,)``, which ends at 1 to the last bit."""
        edges = torch.tensor([0.0, *accumulate(self.masses)], dtype=torch.float64)
        return edges / edges[-1]

    @cached_property
    def _ratios(self) -> Tensor:
        """``K m_k``, ``(K,)``."""
        return self._edges.diff() * self.bins

    def bin(self, u: Tensor) -> Tensor:
        """The bin of each quantile ``u`` of this density, integers ``(n,)``."""
        return (torch.searchsorted(self._edges, u, right=True) - 1).clamp(0, self.bins - 1)

    def ratio(self, u: Tensor) -> Tensor:
        """This density over ``base`` where it has the quantiles ``u``, ``(n,)``."""
        return self._ratios[self.bin(u)]

    def quantile(self, u: Tensor) -> Tensor:
        k = self.bin(u)
        within = (u - self._edges[k]) / (self._edges[k + 1] - self._edges[k])
        return self.base.quantile(((k + within) / self.bins).clamp(0, 1))

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``K`` times the quantile of ``base``, and its bin."""
        place = self.base.cdf(t).clamp(0, 1) * self.bins
        return place, place.detach().long().clamp(0, self.bins - 1)

    def cdf(self, t: Tensor) -> Tensor:
        place, k = self._place(t)
        return self._edges[k] + (place - k) * (self._edges[k + 1] - self._edges[k])

    def pdf(self, t: Tensor) -> Tensor:
        return self.base.pdf(t) * self._ratios[self._place(t)[1]]


@dataclass(frozen=True)
class Moments:
    """Draws of the bound's integrand per unit of the base's quantile, bin by bin: their number, sum and sum of squares.

    Plain numbers, whose arithmetic is the same on every processor, so that all ranks come to the same density.
    """

    count: Sequence[float]
    total: Sequence[float]
    squares: Sequence[float]

    def variances(self) -> list[float]:
        """``Var[g | bin]``, shrunk towards the mean of all bins where there are few draws."""
        rows = list(zip(self.count, self.total, self.squares, strict=True))
        deviations = [max(0.0, squares - total * total / count) if count else 0.0 for count, total, squares in rows]
        free = [max(0.0, count - 1) for count in self.count]
        pooled = math.fsum(deviations) / max(1.0, math.fsum(free))
        return [(s + PRIOR_DRAWS * pooled) / (n + PRIOR_DRAWS) for s, n in zip(deviations, free, strict=True)]

    def efficiency(self) -> float | None:
        """The least variance of a stratified estimate over that of the base, ``(mean sd)^2 / mean variance``; None
        where nothing varies yet."""
        variances = self.variances()
        if not (mean := math.fsum(variances) / len(variances)):
            return None
        return (math.fsum(math.sqrt(v) for v in variances) / len(variances)) ** 2 / mean

    def masses(self, floor: float) -> tuple[float, ...]:
        """Neyman's allocation ``m_k ~ sqrt(Var[g | bin])``, mixed with a share ``floor`` of the base.

        The mixture bounds an image's weight by ``1 / floor`` times the base's, however wrong a variance may be.
        """
        deviations = [math.sqrt(v) for v in self.variances()]
        total, bins = math.fsum(deviations), len(deviations)
        if not total:
            return (1 / bins,) * bins
        return tuple(floor / bins + (1 - floor) * d / total for d in deviations)
