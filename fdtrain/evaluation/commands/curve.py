"""Curves as pictures: samples against evaluations, the bound and its variance against time.

Writes the run's evaluation/curve_SPLIT.json and the pictures made of it (.png) beside it, and shows them in the run's
TensorBoard. When it is interrupted, the same command continues.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.data.split import Split
from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.solvers import GRIDS, SOLVERS, parse_grid
from fdtrain.diffusion.time_sampling import time_density
from fdtrain.errors import UserError
from fdtrain.evaluation import curves
from fdtrain.evaluation.fidelity import feature_networks, image_sets
from fdtrain.evaluation.fidelity.frechet import frechet_distance
from fdtrain.evaluation.fidelity.image_sets import PixelSet
from fdtrain.evaluation.fidelity.measure import measure
from fdtrain.evaluation.fidelity.moments import Moments
from fdtrain.evaluation.likelihood import nll, partial_values
from fdtrain.evaluation.partial import discard, folder_for
from fdtrain.evaluation.reporting import figures, result
from fdtrain.evaluation.reporting.result import CurveResult
from fdtrain.evaluation.sampling.options import Drawing
from fdtrain.evaluation.sampling.samples import to_pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("--data", required=True, help="a packed data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--features", help="to measure samples by, as in fid; default: the pixels")
    parser.add_argument("--images", type=int, default=256, help="samples of each point; images of the bound's curves")
    parser.add_argument("--solvers", nargs="+", default=["sde", "ode", "dpmpp2m", "unipc2", "heun"], metavar="SOLVER")
    parser.add_argument(
        "--grids", nargs="+", default=[], metavar="GRID", help=f"{', '.join(GRIDS)}; default: each solver's own"
    )
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 15, 20, 30], help="evaluations per image")
    parser.add_argument("--reference", type=int, default=200, help="evaluations of the reference ODE solution")
    parser.add_argument("--strata", type=int, default=32, help="of the time, for the bound's curves")
    parser.add_argument("--sets", type=int, default=3, help="of samples at each point, for the bands (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first set")
    parser.add_argument("--batch", type=int, default=256, help="of evaluations, on each process")
    parser.add_argument("--json", type=Path, help="write data and pictures there too; a must for what is not a run")
    parser.add_argument("--device", help="such as cpu or cuda:1; by default the GPU, where there is one")


def run(arguments: argparse.Namespace) -> tuple[Path, int, dict[str, Path]] | None:
    """Returns the run, the step and the pictures by name, for TensorBoard; None if there is no run."""
    _check(arguments)
    start = time.perf_counter()
    model, subject = result.open_model(arguments.model)
    paths = list(filter(None, (subject.results and subject.results / f"curve_{arguments.split}.json", arguments.json)))
    if not paths:
        raise UserError(f"{arguments.model} is not a run: say with --json where the curves go.")
    split = Split(arguments.data, arguments.split)
    spec = model.spec
    nll.check_same_images(spec, split)
    model.to(arguments.device)
    named = arguments.features
    network = (
        feature_networks.open_features(named, arguments.device)
        if named
        else feature_networks.pixel_features(spec.shape)
    )
    shared = {**subject.identity(), **result.split_identity(split), "seed": arguments.seed, "batch": arguments.batch}
    found = {"kind": "curve", **shared, "images": arguments.images}
    folders = []

    def over_images(name: str, count: int, chunk: int, columns: int, compute, options: dict[str, Any]) -> Tensor:
        folders.append(folder_for(paths[0].parent, {**shared, "images": count, "curve": name, **options}))
        return partial_values.over_images(count, chunk, columns, compute, folders[-1], arguments.device, name)

    def solve(drawing: Drawing, seed: int, images: range) -> Tensor:
        return drawing.solve(model, images, seed).flatten(1).double().cpu()

    def samples(drawing: Drawing, seed: int) -> Tensor:
        options = drawing.describe() | {"seed": seed}
        name = f"{drawing.solver}, {options['grid']}, {drawing.nfe}"
        chunk = min(arguments.batch, -(-arguments.images // 4))
        return over_images(name, arguments.images, chunk, spec.dims, partial(solve, drawing, seed), options)

    def moments(images: PixelSet) -> Moments:
        return measure(network, images, images.count, arguments.batch, arguments.device).moments

    data = moments(image_sets.of_split(split))
    strata, count = arguments.strata, min(arguments.images, len(split))
    density = time_density("asinh", spec.scale)
    compute = partial(
        nll.correction_by_stratum,
        model,
        split,
        density=density,
        strata=strata,
        seed=arguments.seed,
        batch=arguments.batch,
    )
    values = over_images("bound by time", count, max(1, arguments.batch // strata), strata, compute, {"strata": strata})
    edges = density.quantile(torch.linspace(0, 1, strata + 1, dtype=torch.float64))
    found["strata"] = {"images": count, "density": "asinh", **curves.by_stratum(values, edges)}

    seeds = range(arguments.seed, arguments.seed + arguments.sets)
    fine = _drawing("ode", None, arguments.reference)
    references = {seed: samples(fine, seed) for seed in seeds}
    found |= {"distance": network.title, "features": network.describe(), "seeds": list(seeds)}
    found["reference"] = {key: fine.describe()[key] for key in ("solver", "grid", "nfe")}
    found["points"] = []
    for drawing in _drawings(arguments):
        distances, rms = [], []
        for seed in seeds:
            x = samples(drawing, seed)
            levels = quantise(x.view(-1, *spec.shape), spec.levels)
            images = image_sets.in_memory(f"samples of {drawing.solver}", to_pixels(levels, spec.levels))
            distances.append(frechet_distance(moments(images), data))
            # A stochastic solver has no one solution to be near to.
            if not SOLVERS[drawing.solver].stochastic:
                rms.append(curves.rms(x, references[seed]))
        found["points"].append(
            {
                **{key: drawing.describe()[key] for key in ("solver", "grid", "nfe")},
                "distance": statistics.mean(distances),
                "distance_by_seed": distances,
                "rms": statistics.mean(rms) if rms else None,
                "rms_by_seed": rms or None,
            }
        )
    found |= {"seconds": time.perf_counter() - start, "device": str(arguments.device)}
    if distributed.rank() != 0:
        return None
    curves_, pictures = CurveResult.model_validate(found), {}
    for path in paths:
        result.write(curves_, path, "--json" if path == arguments.json else "the run's results")
        pictures = draw(curves_, path)
        print(f"{path}: {', '.join(p.name for p in pictures.values())}")
    for folder in folders:
        discard(folder)
    if not subject.run:
        return None
    return subject.run, subject.step or 0, pictures


def draw(found: CurveResult, path: Path) -> dict[str, Path]:
    """The pictures of a result, beside the file it is in, by name."""
    pictures = {name: path.with_name(f"{path.stem}_{name}.png") for name in ("integrand", "variance", "quality")}
    figures.integrand(found.strata, pictures["integrand"])
    figures.variance(found.strata, pictures["variance"])
    title = f"{found.distance} to {found.split}, {found.images} samples"
    figures.quality(found.points, "distance", title, pictures["quality"])
    if any(point.rms is not None for point in found.points):
        pictures["ode"] = path.with_name(f"{path.stem}_ode.png")
        figures.quality(found.points, "rms", "RMS distance to the fine ODE solution, pixels in -1..1", pictures["ode"])
    return pictures


def _check(arguments: argparse.Namespace) -> None:
    for name in ("batch", "strata", "reference", "sets"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1.")
    if arguments.images < 2 or arguments.strata < 2:
        raise UserError("--images and --strata must be at least 2.")
    if min(arguments.nfe) < 1 or arguments.seed < 0:
        raise UserError("--nfe must be at least 1, and --seed not negative.")
    for name in arguments.solvers:
        if name not in SOLVERS:
            raise UserError(f"--solvers: there is no {name!r}; there are {', '.join(SOLVERS)}.")
    for name in arguments.grids:
        try:
            parse_grid(name)
        except ValueError as error:
            raise UserError(f"--grids: {error}.") from error


def _drawing(solver: str, grid: str | None, nfe: int) -> Drawing:
    """At most so many evaluations, one step at least."""
    return Drawing(solver, grid, max(1, nfe // SOLVERS[solver].evaluations_per_step))


def _drawings(arguments: argparse.Namespace) -> list[Drawing]:
    """The points: each once, however it was asked for."""
    points = [
        _drawing(solver, grid, nfe)
        for solver in arguments.solvers
        for grid in arguments.grids or [None]
        for nfe in sorted(arguments.nfe)
    ]
    return list(dict.fromkeys(points))
