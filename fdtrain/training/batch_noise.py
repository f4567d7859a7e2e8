"""The random part of a training batch, lane by lane: times, dequantisation noise, diffusion noise, dropped labels.

Each lane's draws are a function of (seed, step, lane) alone, so they do not depend on how the lanes are
shared among ranks and passes, nor on the device. The strata of ``t`` are laid over the global batch by a permutation
drawn from (seed, step).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fdtrain.config import Config
from fdtrain.data.loader import LaneDataset
from fdtrain.diffusion.clocks import SoftTruncation, TimeDensity, time_density
from fdtrain.diffusion.objective import Bound
from fdtrain.diffusion.time_sampling import draw_uniform
from fdtrain.networks.model import ModelSpec
from fdtrain.randomness import Purpose, stream, streams, torch_seed


class PassInputs:
    """All that the loss of one pass is computed from, side by side in one piece of memory, so that one copy moves it.

    Images ``x0`` and noise ``eps``, ``(n, C, H, W)`` float32; times ``t`` and their density ``pdf``, ``(n,)`` float64;
    ``label``, ``(n,)`` int64.

    Args:
        memory: ``(nbytes,)`` uint8.
        shape: ``(C, H, W)``.
    """

    def __init__(self, memory: Tensor, shape: tuple[int, ...]):
        self.memory, self.shape = memory, shape
        dims = math.prod(shape)
        n = len(memory) // self.nbytes(1, dims)
        x0, eps, t, pdf, label = memory.split([4 * n * dims, 4 * n * dims, 8 * n, 8 * n, 8 * n])
        self.x0, self.eps = (x.view(torch.float32).view(n, *shape) for x in (x0, eps))
        self.t, self.pdf, self.label = t.view(torch.float64), pdf.view(torch.float64), label.view(torch.int64)

    @staticmethod
    def nbytes(images: int, dims: int) -> int:
        """Of so many images."""
        return images * (2 * 4 * dims + 3 * 8)

    def to(self, device: torch.device) -> "PassInputs":
        """On a device, by a copy that the host does not wait for where the memory is pinned."""
        return PassInputs(self.memory.to(device, non_blocking=True), self.shape)


@dataclass(frozen=True)
class BatchNoise:
    """Draws of a run; ``lane_images`` images of each of ``global_batch / lane_images`` lanes in a step.

    ``bound`` is the model's. A share ``label_dropout`` of the labels is replaced by ``null_label``.
    """

    seed: int
    global_batch: int
    lane_images: int
    time_sampling: str
    density: TimeDensity
    bound: Bound
    strata: int | None = None
    """Of stratified times; None: one for each image."""
    label_dropout: float = 0.0
    null_label: int = 0

    @staticmethod
    def of(config: Config, spec: ModelSpec) -> "BatchNoise":
        """Of a configuration."""
        diffusion, training = config.diffusion, config.training
        return BatchNoise(
            config.seed,
            training.global_batch,
            training.lane_images,
            diffusion.time_sampling,
            time_density(diffusion.time_density, spec.scale, spec.bound.interval, diffusion.soft_truncation_k),
            spec.bound,
            diffusion.strata,
            config.network.label_dropout,
            spec.null_label,
        )

    def redrawn(self, rollbacks: int) -> "BatchNoise":
        """Other draws altogether, after so many rollbacks to a checkpoint."""
        return replace(self, seed=torch_seed(self.seed, Purpose.ROLLBACK, rollbacks)) if rollbacks else self

    def at(self, step: int) -> tuple[TimeDensity, Bound]:
        """Of a step's times, and of its images: those of Soft Truncation have an interval of their own."""
        if not isinstance(self.density, SoftTruncation):
            return self.density, self.bound
        density = self.density.of_batch(stream(self.seed, Purpose.INTERVAL, step).random())
        return density, replace(self.bound, interval=density.interval)

    def batch(self, step: int, lanes: range, images: Tensor, labels: Tensor) -> PassInputs:
        """:meth:`fill` of new memory."""
        memory = torch.empty(PassInputs.nbytes(len(images), images[0].numel()), dtype=torch.uint8)
        out = PassInputs(memory, images.shape[1:])
        self.fill(out, step, lanes, images, labels)
        return out

    def fill(self, out: PassInputs, step: int, lanes: range, images: Tensor, labels: Tensor) -> None:
        """The inputs of a pass, on the CPU, from its images ``(n, C, H, W)`` uint8 and labels ``(n,)``."""
        density, bound = self.at(step)
        out.t.copy_(density.quantile(self.quantiles(step, lanes)))
        out.pdf.copy_(density.pdf(out.t))
        out.label.copy_(labels)
        if self.label_dropout:
            out.label[self.dropped_labels(step, lanes)] = self.null_label
        # The dequantisation takes the images' place first.
        for own, x in self._lanes(Purpose.DEQUANTISE, step, lanes, out.x0):
            own.random(dtype=np.float32, out=x)
        out.x0.copy_(bound.images(images, out.x0))
        for own, x in self._lanes(Purpose.NOISE, step, lanes, out.eps):
            own.standard_normal(dtype=np.float32, out=x)

    def quantiles(self, step: int, lanes: range) -> Tensor:
        """``u`` in [0, 1) of the images of ``lanes``, shape ``(n,)``, float64."""
        shared = stream(self.seed, Purpose.STRATA, step)
        places, shift = shared.permutation(self.global_batch), shared.random()
        mine = places[lanes.start * self.lane_images : lanes.stop * self.lane_images]
        own = self._uniform(Purpose.TIME, step, lanes)
        return torch.from_numpy(draw_uniform(self.time_sampling, mine, own, shift, self.global_batch, self.strata))

    def dropped_labels(self, step: int, lanes: range) -> Tensor:
        """Which images of ``lanes`` go without their label, ``(n,)`` bool."""
        return torch.from_numpy(self._uniform(Purpose.LABEL, step, lanes) < self.label_dropout)

    def _uniform(self, purpose: Purpose, step: int, lanes: range) -> np.ndarray:
        out = torch.empty(len(lanes) * self.lane_images, dtype=torch.float64)
        for own, x in self._lanes(purpose, step, lanes, out):
            own.random(out=x)
        return out.numpy()

    def _lanes(
        self, purpose: Purpose, step: int, lanes: range, out: Tensor
    ) -> Iterator[tuple[np.random.Generator, np.ndarray]]:
        """Every lane's generator with the lane's part of ``out``."""
        own = streams(self.seed, purpose, ((step, lane) for lane in lanes))
        return zip(own, out.numpy().reshape(len(lanes), self.lane_images, *out.shape[1:]), strict=True)


class DrawnSteps:
    """A rank's training batches, pass by pass: images with all that is random about them, drawn where they are read."""

    def __init__(self, source: LaneDataset, noise: BatchNoise, passes: Sequence[range]):
        self.source, self.noise, self.passes = source, noise, passes
        self.images, self.epoch, self.shape = source.images, source.epoch, source.reader.description.shape
        self.nbytes = PassInputs.nbytes(self.images, math.prod(self.shape))

    def views(self, memory: Tensor) -> list[PassInputs]:
        return [PassInputs(part, self.shape) for part in memory.chunk(len(self.passes))]

    def read(self, step: int, out: np.ndarray) -> list[str]:
        memory, passes = torch.empty(self.source.nbytes, dtype=torch.uint8), len(self.passes)
        problems = self.source.read(step, memory.numpy())
        parts = zip(self.views(torch.from_numpy(out)), *(x.chunk(passes) for x in self.source.views(memory)))
        for lanes, (part, images, labels) in zip(self.passes, parts, strict=True):
            self.noise.fill(part, step, lanes, images, labels)
        return problems
