"""The times that bring a deterministic solver nearest to the fine solution, found for a model and saved with it.

Writes grids.json into the run, export or checkpoint, which ``--grid optimised`` reads. The same command finds the same
grid (docs/sampling.md).
"""

import argparse
import math
from collections.abc import Callable, Sequence

import torch

from fdtrain import distributed
from fdtrain.diffusion.solvers import GRID, SOLVERS, time_grid
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation.load import open_model
from fdtrain.evaluation.samples import Sampler, check_solver, save_optimised
from fdtrain.randomness import check_seed

FIRST_MOVE = 0.5
"""Of a time, as a share of the way to its neighbour; halved when a round finds nothing."""
ENDS = (1 / 256, 1 / 64, 1 / 16, 1 / 4)
"""Of the two-ended grids that the search may begin from, beside the default one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("--solver", default="ode", help="a deterministic one (default: ode)")
    parser.add_argument("--nfe", type=int, default=10, help="evaluations per image (default: 10)")
    parser.add_argument("--images", type=int, default=256, help="that the distance is taken over (default: 256)")
    parser.add_argument("--reference", type=int, default=100, help="evaluations of the fine solution (default: 100)")
    parser.add_argument("--rounds", type=int, default=4, help="of the search over all times (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="images that are computed together")
    parser.add_argument("--device", help="such as cpu or cuda:1; by default the GPU, where there is one")


def run(arguments: argparse.Namespace) -> None:
    check_solver(arguments.solver, "--solver")
    if SOLVERS[arguments.solver].stochastic:
        raise UserError(f"--solver: {arguments.solver} draws noise; the search is for a deterministic one.")
    per_step = SOLVERS[arguments.solver].evaluations_per_step
    check_at_least(arguments, 1, "nfe", "images", "reference", "rounds", "batch")
    check_seed(arguments.seed, "--seed")
    if arguments.nfe % per_step or arguments.nfe < 2 * per_step:
        raise UserError(
            f"--nfe {arguments.nfe}: {arguments.solver} takes {per_step} a step, and a grid has two steps or more."
        )
    model, origin = open_model(arguments.model, shared=True)
    model.to(arguments.device)
    steps, spec, interval = arguments.nfe // per_step, model.spec, model.spec.bound.interval

    def solve(sampler: Sampler) -> torch.Tensor:
        parts = distributed.chunks(range(arguments.images), arguments.batch)
        return torch.cat([sampler.solve(model, part, arguments.seed) for part in parts])

    fine = solve(Sampler("ode", GRID, arguments.reference))

    def distance(times: tuple[float, ...]) -> float:
        if times[-2] < interval.t_min:
            return float("inf")
        found = solve(Sampler(arguments.solver, times, steps))
        return (found - fine).double().square().mean().sqrt().item()

    starts = [
        tuple(time_grid(grid, steps, spec.levels, spec.dims, interval))
        for grid in (GRID, *(f"{GRID}:{a},{b}" for a in ENDS for b in ENDS))
    ]
    before = distance(starts[0])
    times, value = search(distance, starts, arguments.rounds)
    if distributed.rank() == 0:
        path = save_optimised(origin.home, origin.sha256, arguments.solver, steps, times)
        print(f"{path}: {arguments.solver}, {arguments.nfe} evaluations: {', '.join(f'{t:.4g}' for t in times)}")
        print(f"RMS distance to the fine solution {value:.4f}; on {GRID} {before:.4f}")


def search(
    distance: Callable[[tuple[float, ...]], float], starts: Sequence[tuple[float, ...]], rounds: int
) -> tuple[tuple[float, ...], float]:
    """Pattern search: one inner time after the other moves towards a neighbour, as long as that helps.

    A time stays between its neighbours, so that every grid on the way falls strictly. The search draws nothing.

    Args:
        distance: of the solver's result on a grid, from what it should be; what is not a number is never chosen.
        starts: grids of equal length.
        rounds: over all inner times.

    Returns:
        The best grid and its distance.
    """
    # Later, what is not a number is never less.
    best, times = min(((distance(times), times) for times in starts), key=lambda found: (math.isnan(found[0]), found))
    move = FIRST_MOVE
    for _ in range(rounds):
        improved = False
        for i in range(1, len(times) - 1):
            for neighbour in (times[i - 1], times[i + 1]):
                moved = (*times[:i], times[i] + move * (neighbour - times[i]), *times[i + 1 :])
                value = distance(moved)
                if value < best:
                    best, times, improved = value, moved, True
                    break
        if not improved:
            move /= 2
    return times, best
