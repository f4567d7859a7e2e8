"""What the solvers give at equal numbers of evaluations, and what they cost of themselves (docs/sampling.md).

    python benchmarks/solvers.py spectrum
    python benchmarks/solvers.py rms runs/digits0 runs/digits1 runs/digits2 --images 200
    python benchmarks/solvers.py frechet runs/digits0 ... --data data/digits --features export/digits-features
    python benchmarks/solvers.py cost runs/digits0

``spectrum``: mean KL per dimension of independent Gaussian dimensions with the spectrum of images, exactly. ``rms``:
distance to a fine solution of the ODE. ``frechet``: Frechet distance to the training images. Each line is a solver on
its own grid or, with ``--grids``, on these, where ``optimised`` is what ``fdtrain evaluate grid`` has found; of several
models or ``--seeds`` the mean and the standard deviation.
``cost``: a solver's time beside that of the network's evaluations.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from fdtrain.data.split import Split
from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.solvers import SOLVERS, euler_maruyama, sample, time_grid
from fdtrain.evaluation.fidelity import feature_networks, image_sets
from fdtrain.evaluation.fidelity.frechet import frechet_distance
from fdtrain.evaluation.fidelity.measure import measure
from fdtrain.evaluation.load import load_model
from fdtrain.evaluation.reporting import result
from fdtrain.evaluation.sampling.grids import OPTIMISED, load_optimised
from fdtrain.evaluation.sampling.samples import solve, to_pixels
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, normal

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from spectrum import mean_kl

NFE = (5, 8, 10, 15, 20, 30, 50)
BATCH = 100


def grids(arguments: argparse.Namespace, solver: str) -> list[str]:
    return arguments.grids or [SOLVERS[solver].grid]


def steps(solver: str, nfe: int) -> int:
    return max(1, nfe // SOLVERS[solver].evaluations_per_step)


def spectrum(arguments: argparse.Namespace) -> None:
    print(f"{'solver, grid':28}" + "".join(f"{nfe:>9}" for nfe in arguments.nfe))
    for solver in arguments.solvers:
        for grid in grids(arguments, solver):
            values = [mean_kl(SOLVERS[solver], time_grid(grid, steps(solver, nfe))) for nfe in arguments.nfe]
            print(f"{solver + ', ' + grid:28}" + "".join(f"{value:>9.1e}" for value in values), flush=True)


def images(model: Model, solver: str, times: Sequence[float], count: int, seed: int) -> torch.Tensor:
    """Before they are rounded to levels."""
    spec = model.spec
    parts = [range(i, min(count, i + BATCH)) for i in range(0, count, BATCH)]
    labels = [[i % len(spec.classes) for i in part] if spec.classes else None for part in parts]
    return torch.cat([solve(model, p, label, times, solver, seed) for p, label in zip(parts, labels)])


def truncated(model: Model, nfe: int, count: int, seed: int) -> torch.Tensor:
    """Euler-Maruyama on the linear-beta VP-SDE, cut at 1e-3."""
    spec, parts = model.spec, []
    for first in range(0, count, BATCH):
        part = range(first, min(count, first + BATCH))

        def noise(step: int, part: range = part) -> torch.Tensor:
            return torch.stack(
                [normal(spec.shape, torch.device("cpu"), seed, Purpose.SAMPLE, i, step + 1) for i in part]
            )

        with torch.no_grad():
            parts.append(euler_maruyama(model.field(None, 1.0), noise(-1), nfe, noise))
    return torch.cat(parts)


def over_models(arguments: argparse.Namespace, value) -> None:
    """Print ``value(model, seed, solver, times, nfe)`` of every solver, one line each."""
    models = [result.open_model(path) for path in arguments.models]

    def times(model: Model, subject: result.Subject, solver: str, grid: str, nfe: int) -> Sequence[float]:
        if solver not in SOLVERS:
            return ()
        if grid == OPTIMISED:
            return load_optimised(subject.home, subject.sha256, solver, steps(solver, nfe))
        return time_grid(grid, steps(solver, nfe), model.spec.scale)

    print(f"{'solver, grid':24}" + "".join(f"{nfe:>16}" for nfe in arguments.nfe), flush=True)
    for solver in arguments.solvers:
        for grid in grids(arguments, solver) if solver in SOLVERS else [""]:
            print(f"{solver + ', ' + grid:24}", end="", flush=True)
            for nfe in arguments.nfe:
                values = [
                    value(model, seed, solver, times(model, subject, solver, grid, nfe), nfe)
                    for model, subject in models
                    for seed in arguments.seeds
                ]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                print(f"{statistics.mean(values):>9.4f} {spread:.4f}", end="", flush=True)
            print(flush=True)


def rms(arguments: argparse.Namespace) -> None:
    fine = {}

    def value(model: Model, seed: int, solver: str, times: Sequence[float], nfe: int) -> float:
        if (id(model), seed) not in fine:
            exact = time_grid("angle", steps("heun", arguments.reference))
            fine[id(model), seed] = images(model, "heun", exact, arguments.images, seed)
        found = images(model, solver, times, arguments.images, seed)
        return (found - fine[id(model), seed]).square().mean().sqrt().item()

    arguments.solvers = [name for name in arguments.solvers if not SOLVERS[name].stochastic]
    over_models(arguments, value)


def frechet(arguments: argparse.Namespace) -> None:
    device = torch.device("cpu")
    network = feature_networks.open_features(arguments.features, device)
    data = image_sets.of_split(Split(arguments.data, "train"))
    reference = measure(network, data, data.count, 256, device).moments

    def value(model: Model, seed: int, solver: str, times: Sequence[float], nfe: int) -> float:
        found = (
            truncated(model, nfe, arguments.images, seed)
            if solver == "euler_maruyama"
            else images(model, solver, times, arguments.images, seed)
        )
        drawn = image_sets.in_memory(solver, to_pixels(quantise(found, model.spec.levels), model.spec.levels))
        return frechet_distance(measure(network, drawn, drawn.count, 256, device).moments, reference)

    over_models(arguments, value)


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
                times = time_grid(SOLVERS[solver].grid, 10, spec.scale)
                own = fastest(partial(sample, lambda x, t, zero=zero: zero, x, times, solver, lambda i, x=x: x), 20)
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
    for run in (spectrum, rms, frechet, cost):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--solvers", nargs="+", default=list(SOLVERS))
        command.add_argument("--grids", nargs="+")
        command.add_argument("--nfe", type=int, nargs="+", default=NFE)
        if run is not spectrum:
            command.add_argument("models", nargs="+")
            command.add_argument("--images", type=int, default=2000 if run is frechet else 100)
            command.add_argument("--seeds", type=int, nargs="+", default=[0])
        if run is rms:
            command.add_argument("--reference", type=int, default=200)
        if run is frechet:
            command.add_argument("--data", required=True)
            command.add_argument("--features", required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
