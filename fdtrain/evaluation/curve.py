"""Curves as pictures: samples against evaluations, the bound and its variance against time.

Writes the run's evaluation/curve_SPLIT.json and the pictures made of it (.png) beside it, and shows them in the run's
TensorBoard. When it is interrupted, the same command continues.
"""

import argparse
import statistics
from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fdtrain.diffusion.solvers import GRID, SOLVERS
from fdtrain.errors import check_at_least
from fdtrain.evaluation import feature_networks, figures
from fdtrain.evaluation.job import Job, Shown
from fdtrain.evaluation.job import add_arguments as add_job_arguments
from fdtrain.evaluation.likelihood import density_name
from fdtrain.evaluation.samples import Sampler
from fdtrain.randomness import check_seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    parser.add_argument("--features", help="to measure samples by, as in fid; default: the pixels")
    parser.add_argument("--images", type=int, default=256, help="samples of each point; images of the bound's curves")
    parser.add_argument("--solvers", nargs="+", default=["sde", "ode", "dpmpp2m", "unipc2"], metavar="SOLVER")
    parser.add_argument(
        "--grids", nargs="+", default=[GRID], metavar="GRID", help=f"as of fdtrain sample (default: {GRID})"
    )
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 15, 20, 30], help="evaluations per image")
    parser.add_argument("--reference", type=int, default=200, help="evaluations of the reference ODE solution")
    parser.add_argument("--strata", type=int, default=32, help="of the time, for the bound's curves")
    parser.add_argument("--sets", type=int, default=3, help="of samples at each point, for the bands (default: 3)")
    parser.add_argument("--batch", type=int, default=256, help="of evaluations, on each process")


def run(arguments: argparse.Namespace) -> Shown | None:
    """Returns what TensorBoard is to show, of a run."""
    check_at_least(arguments, 1, "batch", "nfe", "reference", "sets")
    check_at_least(arguments, 2, "images", "strata")
    check_seed(arguments.seed, "--seed", arguments.sets)
    job = Job(arguments, "curve", pictures=True, first=False)
    asked = product(arguments.solvers, arguments.grids, sorted(arguments.nfe))
    # Each point once, however it was asked for, and all that can be had, before any is drawn.
    samplers = dict.fromkeys(Sampler.within(*point).with_times(job.spec, "--grids") for point in asked)
    numbers = {"images": arguments.images, "strata": bound_by_time(job), **quality(job, samplers)}
    return job.finish(numbers, figures.curves)


def bound_by_time(job: Job) -> dict[str, Any]:
    """The bound's integral, its error and its variance, by strata of time."""
    strata, density = job.arguments.strata, density_name(job.spec.bound.interval)
    compute = partial(job.likelihood.correction_by_stratum, strata=strata)
    values = job.stored.over_images("bound by time", compute, job.count, strata, job.batch // strata, strata=strata)
    edges = job.likelihood.density.quantile(torch.linspace(0, 1, strata + 1, dtype=torch.float64))
    return {"images": job.count, "density": density, **by_stratum(values, edges)}


def by_stratum(values: Tensor, edges: Tensor) -> dict:
    """Means, standard errors and variances over images of estimates ``(images, strata)``, stratum by stratum.

    ``variance_within`` is what stratified times leave of one image's estimate, ``variance_iid`` what independent ones
    do: it has the variance of the strata's means besides.
    """
    mean, variance = values.mean(0), values.var(0)
    within = variance.mean().item()
    return {
        "t_edges": edges.tolist(),
        "mean": mean.tolist(),
        "error": (variance / len(values)).sqrt().tolist(),
        "variance": variance.tolist(),
        "variance_within": within,
        "variance_iid": within + mean.var(correction=0).item(),
    }


def quality(job: Job, samplers: Iterable[Sampler]) -> dict[str, Any]:
    """Every point: distances of its samples to the data and, of an ODE's, to the fine solution, seed by seed."""
    arguments, named = job.arguments, job.arguments.features
    network = (
        feature_networks.open_features(named, job.device) if named else feature_networks.pixel_features(job.spec.shape)
    )
    distance, seeds = job.distance_to_split(network), range(job.seed, job.seed + arguments.sets)

    def samples(sampler: Sampler) -> list[Tensor]:
        return [job.samples(job.model, sampler, seed, arguments.images) for seed in seeds]

    fine = Sampler.within("ode", GRID, arguments.reference)
    references, points = samples(fine), []
    for sampler in samplers:
        sets = samples(sampler)
        distances = [distance(x) for x in sets]
        # A stochastic solver has no one solution to be near to.
        pairs = [] if SOLVERS[sampler.solver].stochastic else zip(sets, references)
        rms = [(x.double() - reference.double()).square().mean().sqrt().item() for x, reference in pairs]
        points.append(
            {
                **_named(sampler),
                "distance": statistics.mean(distances),
                "distance_by_seed": distances,
                "rms": statistics.mean(rms) if rms else None,
                "rms_by_seed": rms or None,
            }
        )
    measured = {"distance": network.title, "features": network.describe(), "seeds": list(seeds)}
    return {**measured, "reference": _named(fine), "points": points}


def _named(sampler: Sampler) -> dict[str, Any]:
    """What a point is called by."""
    return {key: sampler.describe()[key] for key in ("solver", "grid", "nfe")}
