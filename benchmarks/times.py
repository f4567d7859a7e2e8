"""The variance of a training batch's bound by the design of its times, at the weights of a trained run.

    python benchmarks/times.py runs/digits --data data/digits

For each density of times, draws of training images in the run's batches: the variance of one image's estimate (bits/dim
squared) that K strata leave, which over the batch is that of the batch's bound (images drawn independently); the
efficiency, which is the variance that the best density would leave over the one of this; and the noise of the gradient
with one stratum for each image.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fdtrain.comparison import noise
from fdtrain.config import load_config
from fdtrain.data.split import Split
from fdtrain.diffusion.clocks import TimeDensity, time_density
from fdtrain.evaluation.load import load_model
from fdtrain.training.batch_noise import BatchNoise

CPU = torch.device("cpu")
PARTS = 32


def with_density(batches: noise.Batches, density: TimeDensity) -> noise.Batches:
    return replace(batches, noise=replace(batches.noise, density=density))


def draws(batches: noise.Batches, numbers: range) -> tuple[Tensor, Tensor, float]:
    """Estimates of the bound of single images, bits/dim, the quantiles of their times, and the efficiency."""
    dims, values, integrands, times = batches.model.spec.dims, [], [], []
    for number in numbers:
        loss, t = batches.loss(number)
        values.append(loss.nelbo.double() / (dims * math.log(2)))
        integrands.append(loss.correction.double())
        times.append(t)
    u = batches.noise.density.cdf(torch.cat(times))
    variances = within(torch.cat(integrands), u, PARTS)
    return torch.cat(values), u, (variances.sqrt().mean().square() / variances.mean()).item()


def within(values: Tensor, u: Tensor, strata: int) -> Tensor:
    """Variances within strata of equal probability, ``(strata,)``."""
    part = (u * strata).long().clamp(max=strata - 1)
    return torch.stack([values[part == k].var() for k in range(strata)])


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
    own = noise.Batches.of(model, split, replace(BatchNoise.of(config, spec), time_sampling="stratified"))

    def density(kind: str) -> TimeDensity:
        return time_density(kind, spec.scale, spec.bound.interval)

    densities: dict[str, TimeDensity] = {kind: density(kind) for kind in ("uniform", "asinh")}
    choices = [batch, batch // 4, batch // 16, 1]
    heads = [*(f"{k} strata" for k in choices), "efficiency", "gradient noise", "1 stratum's"]
    print(f"{'density':22}" + "".join(f"{head:>16}" for head in heads))
    for name, chosen in densities.items():
        batches = with_density(own, chosen)
        with torch.no_grad():
            values, u, efficiency = draws(batches, range(count))
        one = replace(batches, noise=replace(batches.noise, strata=1))
        found = [within(values, u, k).mean().item() / batch for k in choices]
        gradients = [noise.gradient(b, arguments.gradients)["noise"] for b in (batches, one)]
        cells = [*(f"{v:.3e}" for v in found), f"{efficiency:.3f}", *(f"{g:.3f}" for g in gradients)]
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
