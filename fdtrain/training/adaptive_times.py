"""Learns the density of the times while training, from the moments of the bound's integrand.

The density of a step depends on earlier steps alone, so the estimate of the bound is unbiased whatever was learned.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.checkpoint.store import LearnedTimes
from fdtrain.config import DiffusionConfig
from fdtrain.diffusion.adaptive import Moments, Piecewise
from fdtrain.diffusion.clocks import TimeDensity
from fdtrain.diffusion.objective import Loss
from fdtrain.errors import UserError

REMEMBERED = 0.9
"""Weight of all earlier windows at each update: about ten windows count."""
UNIT = 2.0**26
"""Sums are of integers in this unit, which are exact: they do not depend on lanes, passes and ranks."""
LIMIT = 512.0
"""Integrand, nats per dimension, beyond which an image counts as this: its square fits half a million times."""


class AdaptiveTimes:
    """The density in use, and what is known of the integrand.

    Args:
        base: over whose quantile it is learned.
        bins: equal parts of that quantile.
        floor: share of the base that is mixed in.
        update_every: steps of a window, after which the density is another.
        device: where sums are kept until then, so that the host need not wait.
    """

    def __init__(self, base: TimeDensity, bins: int, floor: float, update_every: int, device: torch.device):
        self.floor, self.update_every = floor, update_every
        self.density = Piecewise.like(base, bins)
        self.moments = Moments(*[[0.0] * bins] * 3)
        """Of the windows that have ended."""
        self._window = torch.zeros(3, bins, dtype=torch.int64, device=device)

    @staticmethod
    def of(diffusion: DiffusionConfig, base: TimeDensity, device: torch.device) -> "AdaptiveTimes | None":
        """What a configuration asks for, if it does."""
        if diffusion.time_density != "adaptive":
            return None
        return AdaptiveTimes(
            base, diffusion.adaptive_bins, diffusion.adaptive_floor, diffusion.adaptive_update_every, device
        )

    @torch.no_grad()
    def add(self, loss: Loss, quantile: Tensor, dims: int) -> None:
        """One pass, with the quantile ``u`` of each image's time under :attr:`density`.

        Images whose bound is not finite are left out, as their steps are of the training.
        """
        device = self._window.device
        ratio = self.density.ratio(quantile).to(device, non_blocking=True)
        g = loss.correction.double() * ratio / dims
        finite = torch.isfinite(g)
        g = torch.where(finite, g, 0.0).clamp(-LIMIT, LIMIT)
        rows = torch.stack([finite.double(), g, g * g]) * UNIT
        self._window.index_add_(1, self.density.bin(quantile).to(device, non_blocking=True), rows.round().long())

    def advance(self, step: int) -> None:
        """Before ``step``: begin a new window, with the density that the earlier ones suggest, if one has ended.

        Every rank must call it; all come to the same density.
        """
        if step and step % self.update_every == 0:
            window = distributed.all_reduce_sum(self._window).tolist()
            self._window.zero_()
            before = (self.moments.count, self.moments.total, self.moments.squares)
            self._learn([[REMEMBERED * a + b / UNIT for a, b in zip(*rows)] for rows in zip(before, window)])

    def _learn(self, rows: Sequence[Sequence[float]]) -> None:
        self.moments = Moments(*rows)
        self.density = replace(self.density, masses=self.moments.masses(self.floor))

    def gathered(self) -> LearnedTimes:
        """What :meth:`load` continues from. Every rank must call it; rank 0 alone goes on with the window."""
        window = distributed.all_reduce_sum(self._window)
        if distributed.rank() != 0:
            window.zero_()
        moments = self.moments
        return LearnedTimes([list(moments.count), list(moments.total), list(moments.squares)], window.tolist())

    def load(self, saved: LearnedTimes | None, place: object) -> None:
        """Go on from what :meth:`gathered` gave; None: from the base.

        Raises:
            UserError: it was learned with other bins; ``place`` is where it was read.
        """
        bins = self.density.bins
        if saved is None:
            saved = LearnedTimes([[0.0] * bins] * 3, [[0] * bins] * 3)
        sizes = {len(row) for row in (*saved.moments, *saved.window)}
        if sizes != {bins} or len(saved.moments) != 3 or len(saved.window) != 3:
            raise UserError(
                f"{place} has a density of times learned in {max(sizes, default=0)} bins, not {bins}. "
                "Restore diffusion.adaptive_bins, or give the run another name."
            )
        self._learn(saved.moments)
        window = torch.tensor(saved.window, dtype=torch.int64)
        self._window.copy_(window if distributed.rank() == 0 else torch.zeros_like(window))
