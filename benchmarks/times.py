"""The variance of a training batch's bound by the design of its times, at the weights of a trained run.

    python benchmarks/times.py runs/digits --data data/digits

For each density of times, draws of training images in the run's batches: the variance of one image's estimate (bits/dim
squared) that K strata leave, which over the batch is that of the batch's bound (images drawn independently); the
efficiency, which is the variance that the best density would leave over the one of this; and the noise of the gradient
with one stratum for each image. Learned densities are learned at these weights first, on other batches, as in training.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fdtrain.comparison import noise
from fdtrain.config import Config, load_config
from fdtrain.data.split import Split
from fdtrain.diffusion.adaptive import Piecewise
from fdtrain.diffusion.clocks import TimeDensity, time_density
from fdtrain.evaluation.load import load_model
from fdtrain.training.adaptive_times import AdaptiveTimes
from fdtrain.training.batch_noise import BatchNoise

CPU = torch.device("cpu")
BINS = 32


def with_density(batches: noise.Batches, density: TimeDensity) -> noise.Batches:
    return replace(batches, noise=replace(batches.noise, density=density))


def learned(batches: noise.Batches, config: Config, count: int) -> Piecewise:
    """The density that is learned over that of ``batches`` in so many batches."""
    diffusion = config.diffusion.model_copy(update={"time_density": "adaptive"})
    times = AdaptiveTimes.of(diffusion, batches.noise.density, CPU)
    assert times is not None
    for number in range(count + 1):
        times.advance(number)
        loss, u = with_density(batches, times.density).loss(number)
        times.add(loss, u, batches.model.spec.dims)
    return times.density


def draws(batches: noise.Batches, numbers: range) -> tuple[Tensor, Tensor, float]:
    """Estimates of the bound of single images, bits/dim, the quantiles of their times, and the efficiency."""
    dims = batches.model.spec.dims
    # Equal parts of the density's own quantile, which a floor of 1 leaves as they are.
    times = AdaptiveTimes(batches.noise.density, BINS, 1.0, numbers.stop, CPU)
    values, quantiles = [], []
    for number in numbers:
        loss, u = batches.loss(number)
        times.add(loss, u, dims)
        values.append(loss.nelbo.double() / (dims * math.log(2)))
        quantiles.append(u)
    times.advance(numbers.stop)
    efficiency = times.moments.efficiency()
    return torch.cat(values), torch.cat(quantiles), efficiency or math.nan


def left(values: Tensor, u: Tensor, strata: int) -> float:
    """Mean variance within strata of equal probability."""
    part = (u * strata).long().clamp(max=strata - 1)
    return sum(values[part == k].var().item() for k in range(strata)) / strata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--gradients", type=int, default=64)
    arguments = parser.parse_args()
    config, model = load_config(arguments.run / "config.yaml"), load_model(arguments.run)
    spec, batch, count = model.spec, config.training.global_batch, arguments.batches
    split = Split(arguments.data, config.data.train_split)
    own = noise.Batches.of(model, split, replace(BatchNoise.of(config, spec, CPU), time_sampling="stratified"))

    def density(kind: str) -> TimeDensity:
        return time_density(kind, spec.scale, spec.bound.interval)

    densities: dict[str, TimeDensity] = {kind: density(kind) for kind in ("uniform", "asinh")}
    with torch.no_grad():
        for base in ("uniform", "asinh"):
            densities[f"learned over {base}"] = learned(with_density(own, density(base)), config, count)
    choices = [batch, batch // 4, batch // 16, 1]
    heads = [*(f"{k} strata" for k in choices), "efficiency", "gradient noise", "1 stratum's"]
    print(f"{'density':22}" + "".join(f"{head:>16}" for head in heads))
    for name, chosen in densities.items():
        batches = with_density(own, chosen)
        with torch.no_grad():
            values, u, efficiency = draws(batches, range(count + 1, 2 * count + 1))
        one = replace(batches, noise=replace(batches.noise, strata=1))
        found = [left(values, u, k) / batch for k in choices]
        gradients = [noise.gradient(b, arguments.gradients)["noise"] for b in (batches, one)]
        cells = [*(f"{v:.3e}" for v in found), f"{efficiency:.3f}", *(f"{g:.3f}" for g in gradients)]
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
        if isinstance(chosen, Piecewise):
            print("  over its base: " + " ".join(f"{m * chosen.bins:.2f}" for m in chosen.masses))


if __name__ == "__main__":
    main()
