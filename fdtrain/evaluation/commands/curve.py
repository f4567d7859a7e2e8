"""Curves as pictures: samples against evaluations, the bound and its variance against time.

Writes the run's evaluation/curve_SPLIT.json and the pictures made of it (.png) beside it, and shows them in the run's
TensorBoard. When it is interrupted, the same command continues.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.solvers import GRID, SOLVERS, parse_grid
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation import feature_networks, figures, image_sets, nll
from fdtrain.evaluation.frechet import frechet_distance
from fdtrain.evaluation.job import Job, Shown
from fdtrain.evaluation.job import add_arguments as add_job_arguments
from fdtrain.evaluation.result import CurveResult
from fdtrain.evaluation.sampler import Sampler
from fdtrain.evaluation.samples import to_pixels
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
    _check(arguments)
    start = time.perf_counter()
    job = _Curves(arguments, "curve", pictures=True, first=False)
    content = {"kind": "curve", **job.settings, "images": arguments.images}
    content |= {"strata": job.bound_by_time(), **job.quality(), "device": str(arguments.device)}
    if distributed.rank() != 0:
        return None
    found = CurveResult.model_validate({**content, "seconds": time.perf_counter() - start})
    shown = job.write(found, figures.curves(found))
    job.stored.discard()
    return shown


class _Curves(Job):
    """What is computed, the processes in turn."""

    def bound_by_time(self) -> dict[str, Any]:
        """The bound's integral, its error and its variance, by strata of time."""
        arguments, spec = self.arguments, self.spec
        strata = arguments.strata
        density = nll.time_density_of(spec.bound.interval, spec.scale)
        compute = partial(
            nll.correction_by_stratum,
            self.model,
            self.split,
            density=density,
            strata=strata,
            seed=arguments.seed,
            batch=arguments.batch,
        )
        values = self._over_images("bound by time", self.count, self.batch // strata, strata, compute, strata=strata)
        edges = density.quantile(torch.linspace(0, 1, strata + 1, dtype=torch.float64))
        return {"images": self.count, "density": nll.density_name(spec.bound.interval), **by_stratum(values, edges)}

    def quality(self) -> dict[str, Any]:
        """Every point: distances of its samples to the data and, of an ODE's, to the fine solution, seed by seed."""
        arguments, spec = self.arguments, self.spec
        named, device = arguments.features, arguments.device
        features = (
            feature_networks.open_features(named, device) if named else feature_networks.pixel_features(spec.shape)
        )

        def distance(sampler: Sampler, x: Tensor) -> float:
            levels = quantise(x.view(-1, *spec.shape), spec.levels)
            images = image_sets.in_memory(f"samples of {sampler.solver}", to_pixels(levels, spec.levels))
            return frechet_distance(self.moments(features, images), data)

        data = self.moments(features, image_sets.of_split(self.split))
        seeds = range(arguments.seed, arguments.seed + arguments.sets)
        fine = _sampler("ode", GRID, arguments.reference)
        references = {seed: self._samples(fine, seed) for seed in seeds}
        points = []
        for sampler in _samplers(arguments):
            sets = {seed: self._samples(sampler, seed) for seed in seeds}
            distances = [distance(sampler, x) for x in sets.values()]
            # A stochastic solver has no one solution to be near to.
            stochastic = SOLVERS[sampler.solver].stochastic
            rms = [] if stochastic else [rms_difference(x, references[seed]) for seed, x in sets.items()]
            points.append(
                {
                    **_named(sampler),
                    "distance": statistics.mean(distances),
                    "distance_by_seed": distances,
                    "rms": statistics.mean(rms) if rms else None,
                    "rms_by_seed": rms or None,
                }
            )
        measured = {"distance": features.title, "features": features.describe(), "seeds": list(seeds)}
        return {**measured, "reference": _named(fine), "points": points}

    def _samples(self, sampler: Sampler, seed: int) -> Tensor:
        """Of one seed, before they are rounded to levels: ``(images, dims)`` float64 on the CPU."""

        def solve(images: range) -> Tensor:
            return sampler.solve(self.model, images, seed).flatten(1).double().cpu()

        count, options = self.arguments.images, sampler.describe() | {"seed": seed}
        name = f"{sampler.solver}, {options['grid']}, {sampler.nfe}"
        chunk = min(self.arguments.batch, -(-count // 4))
        return self._over_images(name, count, chunk, self.spec.dims, solve, **options)

    def _over_images(self, name: str, count: int, chunk: int, columns: int, compute, **options: Any) -> Tensor:
        return self.over_images(name, compute, chunk, columns, count, images=count, curve=name, **options)


def _named(sampler: Sampler) -> dict[str, Any]:
    """What a point is called by."""
    return {key: sampler.describe()[key] for key in ("solver", "grid", "nfe")}


def _check(arguments: argparse.Namespace) -> None:
    check_at_least(arguments, 1, "batch", "strata", "reference", "sets")
    check_at_least(arguments, 2, "images", "strata")
    check_seed(arguments.seed, "--seed", arguments.sets)
    if min(arguments.nfe) < 1:
        raise UserError("--nfe must be at least 1.")
    for name in arguments.solvers:
        if name not in SOLVERS:
            raise UserError(f"--solvers: there is no {name!r}; there are {', '.join(SOLVERS)}.")
    for name in arguments.grids:
        try:
            parse_grid(name)
        except ValueError as error:
            raise UserError(f"--grids: {error}.") from error


def _sampler(solver: str, grid: str, nfe: int) -> Sampler:
    """At most so many evaluations, one step at least."""
    return Sampler(solver, grid, max(1, nfe // SOLVERS[solver].evaluations_per_step))


def _samplers(arguments: argparse.Namespace) -> list[Sampler]:
    """The points: each once, however it was asked for."""
    points = [
        _sampler(solver, grid, nfe)
        for solver in arguments.solvers
        for grid in arguments.grids
        for nfe in sorted(arguments.nfe)
    ]
    return list(dict.fromkeys(points))


def rms_difference(x: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference over images and dimensions; images range over [-1, 1]."""
    return (x - reference).square().mean().sqrt().item()


def by_stratum(values: Tensor, edges: Tensor) -> dict:
    """Means, standard errors and variances over images of estimates ``(images, strata)``, stratum by stratum.

    ``variance_within`` is what stratified times leave of one image's estimate, ``variance_iid`` what independent ones
    do: it has the variance of the strata's means besides.
    """
    images = len(values)
    mean, variance = values.mean(0), values.var(0)
    within = variance.mean().item()
    return {
        "t_edges": edges.tolist(),
        "mean": mean.tolist(),
        "error": (variance / images).sqrt().tolist(),
        "variance": variance.tolist(),
        "variance_within": within,
        "variance_iid": within + mean.var(correction=0).item(),
    }
