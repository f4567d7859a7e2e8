"""What the solvers give at equal numbers of evaluations, and what they cost of themselves (docs/sampling.md).

    python benchmarks/solvers.py spectrum
    python benchmarks/solvers.py mixture --data data/fashion_mnist
    python benchmarks/solvers.py cost runs/digits0

``spectrum``: mean KL per dimension of independent Gaussian dimensions with the spectrum of images. ``mixture``:
the exact field of narrow Gaussians around training images; distance to a fine solution of the ODE, and Frechet distance
of the pixels to the mixture. Each line is a solver on the default grid or, with ``--grids``, on these.
``cost``: a solver's time beside that of the network's evaluations. Of trained models: ``fdtrain evaluate curve``.
"""

import argparse
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

from fdtrain.data.split import Split
from fdtrain.diffusion.solvers import GRID, SOLVERS, sample, time_grid
from fdtrain.evaluation.frechet import FeatureMoments, Gaussian, frechet_distance
from fdtrain.evaluation.load import load_model

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import densities

NFE = (5, 8, 10, 15, 20, 30, 50)
DIMS = 2500
"""Of images whose largest deviation is about that of the spectrum."""


def steps(solver: str, nfe: int) -> int:
    return max(1, nfe // SOLVERS[solver].evaluations_per_step)


def spectrum(arguments: argparse.Namespace) -> None:
    print(f"{'solver, grid':28}" + "".join(f"{nfe:>9}" for nfe in arguments.nfe))
    for solver in arguments.solvers:
        for grid in arguments.grids:
            times = [time_grid(grid, steps(solver, nfe), 256, DIMS) for nfe in arguments.nfe]
            values = [densities.mean_kl(densities.spectrum(0.0), SOLVERS[solver], each) for each in times]
            print(f"{solver + ', ' + grid:28}" + "".join(f"{value:>9.1e}" for value in values), flush=True)


class Mixture:
    """Of ``N(x_i, deviation^2)`` around images ``x_i`` in [-1, 1], ``(n, d)``."""

    def __init__(self, x: torch.Tensor, deviation: float):
        self.x, self.squares, self.variance = x, x.square().sum(1), deviation**2

    def field(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Exact, by the mean of ``x0`` given ``x`` and the component; float32 inside."""
        time = t[0].item()
        a, near = math.sqrt(1 - time**2), x.float()
        spread = a * a * self.variance + time**2
        logits = (a * (near @ self.x.T) - 0.5 * a * a * self.squares) / spread
        mean = logits.double().softmax(1).float() @ self.x
        return (a * x - mean - a * self.variance / spread * (near - a * mean)) / time**2

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        which = torch.randint(len(self.x), (count,), generator=generator)
        return self.x[which] + math.sqrt(self.variance) * torch.randn(count, self.x.shape[1], generator=generator)

    def moments(self) -> Gaussian:
        found = FeatureMoments(self.x.shape[1])
        found.add(self.x)
        found.outer += len(self.x) * self.variance * torch.eye(self.x.shape[1])
        return found.gaussian()


def mixture(arguments: argparse.Namespace) -> None:
    split = Split(arguments.data, "train")
    levels = split.description.levels
    data = Mixture(split.batch(range(arguments.components))[0].flatten(1).float() * (2 / (levels - 1)) - 1, 0.01)
    dims, target = data.x.shape[1], data.moments()

    def distance(x: torch.Tensor) -> float:
        found = FeatureMoments(dims)
        found.add(x)
        return frechet_distance(found.gaussian(), target)

    def noise(step: int) -> torch.Tensor:
        return torch.randn(arguments.images, dims, generator=torch.Generator().manual_seed(step + 1)).double()

    exact = sample(data.field, noise(-1), time_grid(GRID, arguments.reference, levels, dims), "ode")
    fresh = [distance(data.sample(arguments.images, torch.Generator().manual_seed(seed))) for seed in range(10)]
    print(f"fresh data {statistics.mean(fresh):.2f} +- {statistics.stdev(fresh):.2f}, fine ODE {distance(exact):.2f}")
    print(f"{'solver, grid':28}" + "".join(f"{nfe:>14}" for nfe in arguments.nfe))
    for solver in arguments.solvers:
        for grid in arguments.grids:
            print(f"{solver + ', ' + grid:28}", end="")
            for nfe in arguments.nfe:
                x = sample(data.field, noise(-1), time_grid(grid, steps(solver, nfe), levels, dims), solver, noise)
                rms = "" if SOLVERS[solver].stochastic else f"{(x - exact).square().mean().sqrt():.3f}"
                print(f"{rms:>7}{distance(x):>7.1f}", end="", flush=True)
            print(flush=True)


def cost(arguments: argparse.Namespace) -> None:
    """Of ten evaluations of a batch: the solver with a field that costs nothing, against the network alone."""
    for path in arguments.models:
        model = load_model(path)
        spec = model.spec
        x = torch.randn(arguments.images, *spec.shape)
        field, zero = (
            model.field(torch.zeros(len(x), dtype=torch.long) if spec.classes else None, 1.0),
            torch.zeros_like(x),
        )
        t = torch.full((len(x),), 0.5, dtype=torch.float64)
        with torch.no_grad():
            network = fastest(partial(field, x, t), 5)
            print(f"{path}: network {1e3 * network:.2f} ms an evaluation of {len(x)} images")
            for solver in arguments.solvers:
                times = time_grid(GRID, 10, spec.levels, spec.dims, spec.bound.interval)
                own = fastest(
                    partial(
                        sample,
                        lambda x, t, zero=zero: zero,
                        x,
                        times,
                        solver,
                        lambda i, x=x: x,
                        None,
                        spec.bound.interval,
                    ),
                    20,
                )
                own /= 10 * SOLVERS[solver].evaluations_per_step
                print(f"  {solver:14} {1e3 * own:.3f} ms an evaluation, {100 * own / network:.2f}%", flush=True)


def fastest(call, repeats: int) -> float:
    """Seconds; the least of several, for others use the machine too."""
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for run in (spectrum, mixture, cost):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--solvers", nargs="+", default=list(SOLVERS))
        command.add_argument("--grids", nargs="+", default=[GRID])
        command.add_argument("--nfe", type=int, nargs="+", default=NFE)
        if run is not spectrum:
            command.add_argument("--images", type=int, default=400 if run is mixture else 100)
        if run is cost:
            command.add_argument("models", nargs="+")
        if run is mixture:
            command.add_argument("--components", type=int, default=2000)
            command.add_argument("--reference", type=int, default=200)
            command.add_argument("--data", required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
