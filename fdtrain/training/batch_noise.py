"""The random part of a training batch, lane by lane: times, dequantisation noise, diffusion noise.

Each lane's draws are a function of (seed, step, lane) alone, so they do not depend on how the lanes are
shared among ranks and passes. The strata of ``t`` are laid over the global batch by a permutation drawn
from (seed, step).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fdtrain.config import Config
from fdtrain.diffusion.clocks import SoftTruncation, TimeDensity, time_density
from fdtrain.diffusion.objective import Bound
from fdtrain.diffusion.time_sampling import draw_uniform
from fdtrain.networks.model import ModelSpec
from fdtrain.randomness import Purpose, normal, stream, torch_seed, uniform


@dataclass(frozen=True)
class PassInputs:
    """All that the loss of one pass is computed from, on the device.

    ``bound`` is the model's, but for Soft Truncation, whose batches have intervals of their own.
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    pdf: Tensor
    label: Tensor | None
    bound: Bound


@dataclass(frozen=True)
class BatchNoise:
    """Draws of a run; ``lane_images`` images of each of ``global_batch / lane_images`` lanes in a step."""

    seed: int
    global_batch: int
    lane_images: int
    time_sampling: str
    density: TimeDensity
    device: torch.device
    strata: int | None = None
    """Of stratified times; None: one for each image."""

    @staticmethod
    def of(config: Config, spec: ModelSpec, device: torch.device) -> "BatchNoise":
        """Of a configuration."""
        diffusion, training = config.diffusion, config.training
        density = time_density(diffusion.time_density, spec.scale, spec.bound.interval, diffusion.soft_truncation_k)
        return BatchNoise(
            config.seed,
            training.global_batch,
            training.lane_images,
            diffusion.time_sampling,
            density,
            device,
            diffusion.strata,
        )

    def redrawn(self, rollbacks: int) -> "BatchNoise":
        """Other draws altogether, after so many rollbacks to a checkpoint."""
        return replace(self, seed=torch_seed(self.seed, Purpose.ROLLBACK, rollbacks)) if rollbacks else self

    def batch(self, step: int, lanes: Sequence[int], images: Tensor, labels: Tensor | None, bound: Bound) -> PassInputs:
        """The images of ``lanes``, ``(n, C, H, W)`` uint8, dequantised, with their times and noise.

        Args:
            labels: ``(n,)``, as given to the network; None for an unconditional one.
            bound: whose images they are.
        """
        shape, u = images.shape[1:], self.quantiles(step, lanes)
        density = self.density
        if isinstance(density, SoftTruncation):
            density = density.of_batch(stream(self.seed, Purpose.INTERVAL, step).random())
            bound = replace(bound, interval=density.interval)
        t = density.quantile(u)
        pdf = density.pdf(t)
        return PassInputs(
            x0=bound.images(self._move(images), self.dequantisation(step, lanes, shape)),
            eps=self.noise(step, lanes, shape),
            t=self._move(t),
            pdf=self._move(pdf),
            label=None if labels is None else self._move(labels),
            bound=bound,
        )

    def _move(self, x: Tensor) -> Tensor:
        # Never a copy that waits: the host is to run ahead of the device.
        return x.to(self.device, non_blocking=True)

    def labels(self, step: int, lanes: Sequence[int], labels: Tensor, spec: ModelSpec, dropout: float) -> Tensor | None:
        """What the network is given of them: nothing if it is unconditional; the dropped ones as its null class."""
        if not spec.null_class:
            return labels if spec.classes else None
        return labels.masked_fill(self.dropped_labels(step, lanes, dropout), spec.null_label)

    def quantiles(self, step: int, lanes: Sequence[int]) -> Tensor:
        """``u`` in [0, 1) of the images of ``lanes``, shape ``(n,)``, float64, on the CPU."""
        shared = stream(self.seed, Purpose.STRATA, step)
        places, shift = shared.permutation(self.global_batch), shared.random()
        parts = []
        for lane in lanes:
            own = stream(self.seed, Purpose.TIME, step, lane).random(self.lane_images)
            mine = places[lane * self.lane_images : (lane + 1) * self.lane_images]
            parts.append(draw_uniform(self.time_sampling, mine, own, shift, self.global_batch, self.strata))
        return torch.from_numpy(np.concatenate(parts))

    def dropped_labels(self, step: int, lanes: Sequence[int], share: float) -> Tensor:
        """Which images of ``lanes`` go without their label, ``(n,)`` bool, on the CPU."""
        draws = [stream(self.seed, Purpose.LABEL, step, lane).random(self.lane_images) for lane in lanes]
        return torch.from_numpy(np.concatenate(draws) < share)

    def dequantisation(self, step: int, lanes: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Uniform noise on [0, 1), ``(n, *shape)``."""
        return self._lanes(uniform, Purpose.DEQUANTISE, step, lanes, shape)

    def noise(self, step: int, lanes: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise, ``(n, *shape)``."""
        return self._lanes(normal, Purpose.NOISE, step, lanes, shape)

    def _lanes(self, draw, purpose: Purpose, step: int, lanes: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        parts = [draw((self.lane_images, *shape), self.device, self.seed, purpose, step, lane) for lane in lanes]
        return torch.cat(parts)
