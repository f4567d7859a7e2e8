"""The noise of a variant's training at its trained weights: of the batch's bound, by time, and of the gradient.

All is measured with the averaged weights in evaluation mode (no dropout), on batches of training images drawn without
replacement, with the variant's own predictor, time sampling and density.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.diffusion.objective import Loss
from fdtrain.diffusion.weighting import Weighting
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, stream
from fdtrain.training.batch_noise import BatchNoise


@dataclass(frozen=True)
class Batches:
    """Training batches, by number: images of the split, and the draws of a run with the given noise.

    ``weighting`` is of what is trained on; None: the bound.
    """

    model: Model
    split: Split
    noise: BatchNoise
    weighting: Weighting | None
    pixels: Tensor
    labels: Tensor

    @staticmethod
    def of(
        model: Model, split: Split, noise: BatchNoise, weighting: Weighting | None = None, most: int = 4096
    ) -> "Batches":
        """Batches of the first ``most`` images of the split."""
        pixels, labels = split.batch(range(min(len(split), most)))
        return Batches(model, split, noise, weighting, pixels, labels)

    def chosen(self, number: int) -> Tensor:
        """The numbers of a batch's images."""
        own, count = stream(self.noise.seed, Purpose.EVALUATE, number), len(self.pixels)
        order = own.permutation(max(count, self.noise.global_batch)) % count
        return torch.from_numpy(order)[: self.noise.global_batch]

    def loss(self, number: int) -> tuple[Loss, Tensor]:
        """The loss of each image of a batch, and its time, ``(global_batch,)``."""
        noise, spec, chosen = self.noise, self.model.spec, self.chosen(number)
        lanes = range(noise.global_batch // noise.lane_images)
        batch = noise.batch(number, lanes, self.pixels[chosen], self.labels[chosen])
        batch = batch.to(next(self.model.parameters()).device)
        field, bound = self.model.field(batch.label if spec.classes else None), noise.at(number)[1]
        return bound.loss(field, batch.x0, batch.eps, batch.t, batch.pdf, self.weighting), batch.t


def bound(batches: Batches, count: int, strata: int) -> dict[str, Any]:
    """The batch's estimate of the bound over ``count`` batches, in bits/dim.

    ``variance`` is of the mean over a batch. ``by_time`` is the variance of one image's estimate by equal parts of
    the time's quantile, the images' own part included.
    """
    spec, means, values, times = batches.model.spec, [], [], []
    with torch.no_grad():
        for number in range(count):
            loss, t = batches.loss(number)
            bits = loss.nelbo.double().cpu() / (spec.dims * math.log(2))
            means.append(bits.mean())
            values.append(bits)
            times.append(t.cpu())
    edges = batches.noise.density.quantile(torch.linspace(0, 1, strata + 1, dtype=torch.float64))
    bits, part = torch.cat(values), torch.bucketize(torch.cat(times), edges[1:-1], right=True)
    drawn = [bits[part == k] for k in range(strata)]
    return {
        "batches": count,
        "variance": torch.stack(means).var().item(),
        "t_edges": edges.tolist(),
        "by_time": [chosen.var().item() if len(chosen) > 1 else None for chosen in drawn],
    }


def gradient(batches: Batches, count: int) -> dict[str, Any]:
    """The gradient of what is trained on (per dimension; the bound's in nats) by the weights, over ``count`` batches.

    ``noise`` is the square root of the trace of a batch's gradient covariance, which has the unit of a gradient norm;
    ``noise_scale`` is that trace over the squared norm of the mean gradient, both unbiased: the number of such batches
    at which noise and gradient are equal (McCandlish et al. 2018, arXiv:1812.06162, divided by the batch). None where
    the mean is not to be told from zero.
    """
    model = batches.model
    weights = [p.requires_grad_(True) for p in model.parameters()]
    total, squares = torch.zeros(sum(p.numel() for p in weights), dtype=torch.float64), 0.0
    try:
        for number in range(count):
            loss, _ = batches.loss(number)
            grads = torch.autograd.grad(loss.train.mean() / model.spec.dims, weights, allow_unused=True)
            # A weight may have no part in the output.
            parts = [torch.zeros(p.numel()) if g is None else g.flatten().cpu() for g, p in zip(grads, weights)]
            flat = torch.cat(parts).double()
            total += flat
            squares += flat.square().sum().item()
    finally:
        model.requires_grad_(False)
    return covariance_trace(total.square().sum().item(), squares, count)


def covariance_trace(square_of_sum: float, sum_of_squares: float, count: int) -> dict[str, Any]:
    """``noise`` and ``noise_scale`` from ``|sum g|^2`` and ``sum |g|^2`` of ``count`` gradients."""
    trace = (sum_of_squares - square_of_sum / count) / (count - 1)
    mean_square = (square_of_sum - sum_of_squares) / (count * (count - 1))
    return {
        "gradients": count,
        "noise": math.sqrt(max(0.0, trace)),
        "norm": math.sqrt(sum_of_squares / count),
        "noise_scale": trace / mean_square if mean_square > 0 else None,
    }
