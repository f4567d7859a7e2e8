"""What is measured of a step, summed on the device and read once per window of steps, so that logging does not stop
the accelerator in between; the time of steps, and what share of the devices they use."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.diffusion.clocks import TimeDensity

QUANTILES = 10
"""Equal parts of the time distribution that the integrand is reported over."""
SCALARS = ("steps", "bits", "images", "gradient_norm", "updates", "broken")


class MetricSums:
    """Sums over the steps since the last log line, float64 on the device; summed over ranks when read. The integrand is
    reported by equal parts of the ``density`` of the times."""

    def __init__(self, device: torch.device, density: TimeDensity):
        edges = torch.linspace(0, 1, QUANTILES + 1, dtype=torch.float64)[1:-1]
        self._edges = density.quantile(edges).to(device)
        self._all = torch.zeros(len(SCALARS) + 2 * QUANTILES, dtype=torch.float64, device=device)
        # Views by name.
        self.steps, self.bits, self.images, self.gradient_norm, self.updates, self.broken = self._all[: len(SCALARS)]
        self.integrand, self.drawn = self._all[len(SCALARS) :].view(2, QUANTILES)

    def __len__(self) -> int:
        return len(self._all)

    @torch.no_grad()
    def add_pass(self, bits: Tensor, integrand: Tensor, t: Tensor) -> None:
        """Bits/dim, integrand (bits/dim) and time in float64 of each image, ``(B,)``.

        Images whose bound is not finite are left out of the means, as their steps are of the training.
        """
        finite = torch.isfinite(bits)
        part = torch.bucketize(t, self._edges, right=True)
        self.bits += torch.where(finite, bits, 0.0).sum()
        self.images += finite.sum()
        self.integrand.index_add_(0, part, torch.where(finite, integrand, 0.0).double())
        self.drawn.index_add_(0, part, finite.double())

    def add_broken(self, samples: int) -> None:
        """Broken samples of one step that others stand in for."""
        if samples:
            self.broken += samples

    def add_step(self, gradient_norm: Tensor, skipped: Tensor) -> None:
        """One step, and whether it was skipped; both are the same on every rank, so only the first counts."""
        if distributed.rank() == 0:
            self.steps += 1
            self.gradient_norm += torch.where(skipped > 0, 0.0, gradient_norm)
            self.updates += 1 - skipped

    def all_ranks(self) -> list[float]:
        """The sums over all ranks, which rank 0 alone goes on with. Every rank must call it."""
        sums = distributed.all_reduce_sum(self._all)
        if distributed.rank() != 0:
            sums.zero_()
        return sums.tolist()

    def restart(self, sums: Sequence[float] | None = None) -> None:
        """From zero, or from what :meth:`all_ranks` gave."""
        self._all.zero_()
        if sums is not None:
            self._all.copy_(torch.tensor(sums, dtype=torch.float64))

    def read(self) -> dict[str, float]:
        """Means over all ranks' steps: bits/dim (if of any image), gradient norm, steps skipped, integrand by
        time quantile. Starts again from zero. The only place where the host waits for the device; every rank must
        call it."""
        sums = distributed.all_reduce_sum(self._all).tolist()
        self.restart()
        scalars, parts = dict(zip(SCALARS, sums)), sums[len(SCALARS) :]
        metrics = {
            **({"bits_per_dim": scalars["bits"] / scalars["images"]} if scalars["images"] else {}),
            "gradient_norm": scalars["gradient_norm"] / max(1.0, scalars["updates"]),
            "skipped_steps": scalars["steps"] - scalars["updates"],
            "broken_samples": scalars["broken"],
        }
        for i, (integrand, drawn) in enumerate(zip(parts[:QUANTILES], parts[QUANTILES:])):
            if drawn:
                metrics[f"integrand/{i}"] = integrand / drawn
        return metrics


class Stopwatch:
    """Time of some steps and its share spent waiting for data; pauses for what is not training.

    It counts the steps itself: of a window that a checkpoint has begun, :class:`MetricSums` goes on with the sums, but
    the time was another process's.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.paused, self.steps = time.perf_counter(), 0.0, 0.0, 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.paused += time.perf_counter() - begin

    @contextmanager
    def wait(self) -> Iterator[None]:
        """For the batch of a step."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.steps += 1

    @property
    def elapsed(self) -> float:
        """Seconds of training since the restart."""
        return time.perf_counter() - self.start - self.paused


@dataclass(frozen=True)
class Utilisation:
    """What turns images/s into a share of the devices (docs/lab/performance.md): the counted operations of an image's
    training, without what checkpointing computes again, and the measured FLOP/s of matrix products, of all devices."""

    flops_per_image: int
    devices: int
    rate: float

    def speed(self, images_per_second: float) -> dict[str, float]:
        """Metrics of a window: whole and per device, and the model FLOPs utilisation of Chowdhery et al. 2022 (PaLM,
        appendix B), against the rate that was measured in place of the data sheet's. Above 1 that measurement was
        disturbed, by another program on the device or a clock that changed: then there is none."""
        flops = images_per_second * self.flops_per_image
        share = flops / self.rate
        return {
            "images_per_second": images_per_second,
            "images_per_second_per_device": images_per_second / self.devices,
            "gflop_per_image": self.flops_per_image / 1e9,
            "tflops_per_device": flops / self.devices / 1e12,
            **({"utilisation": share} if share <= 1 else {}),
        }
