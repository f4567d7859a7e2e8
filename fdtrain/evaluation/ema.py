"""Bits/dim, and distances of samples, against the relative length of the average of the weights.

    fdtrain evaluate ema runs/digits --lengths 0.03 0.05 0.1 0.15

For runs with ema.lengths (docs/training.md). Every length, and the run's own average of ema.decay, is evaluated on the
same images with the same draws. Writes the run's evaluation/ema_SPLIT.json and the pictures made of it (.png) beside
it, and shows them in the run's TensorBoard. When it is interrupted, the same command continues.
"""

import argparse
from functools import partial

from fdtrain.diffusion.likelihood import estimate
from fdtrain.errors import check_at_least, excerpt
from fdtrain.evaluation import feature_networks, figures
from fdtrain.evaluation.job import Job, Shown, known
from fdtrain.evaluation.job import add_arguments as add_job_arguments
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.evaluation.load import TrackedAverages, find_model, weights_digest
from fdtrain.evaluation.result import EmaResult
from fdtrain.evaluation.samples import Sampler, add_sampling_arguments
from fdtrain.randomness import check_seed

LENGTHS = (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25)
"""Unless others are given, those of them that the run's snapshots give."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    default = f"default: those of {', '.join(map(str, LENGTHS))} that the snapshots give"
    parser.add_argument("--lengths", type=float, nargs="+", metavar="LENGTH", help=default)
    parser.add_argument("--draws", type=int, default=20, help="draws of time and noise per image")
    parser.add_argument("--images", type=int, help="the first so many images only; the result says so")
    parser.add_argument("--features", help="measure samples by them, as in fid")
    parser.add_argument("--samples", type=int, default=1000, help="to measure, of each length (default: 1000)")
    add_sampling_arguments(parser)


def run(arguments: argparse.Namespace) -> Shown | None:
    """Returns what TensorBoard is to show, of a run."""
    check_at_least(arguments, 1, "draws", "images", "batch")
    check_seed(arguments.seed, "--seed")
    check_at_least(arguments, 2, "samples")
    job = Job(arguments, "ema", pictures=True)
    averages = TrackedAverages(find_model(job.origin.folder)[1], job.spec)
    lengths = sorted(set(arguments.lengths or averages.served(LENGTHS)))
    # Each can be had, before any is evaluated.
    errors = {None: 0.0} | {length: averages.fit(length).error for length in lengths}
    sampler = Sampler.of(arguments, job.spec, job.origin)
    job.settings |= {
        "images": job.count,
        "bound": job.spec.bound.describe(),
        "draws": arguments.draws,
        "tracked": averages.lengths,
        "snapshots": len({each.step for each in averages.tracked}),
    }
    measured, distance = {}, None
    if arguments.features:
        network = feature_networks.open_features(arguments.features, job.device)
        distance = job.distance_to_split(network)
        measured = {"distance": network.title, "features": network.describe(), "samples": arguments.samples}
        measured["drawing"] = sampler.describe()
    points, own, draws = [], None, arguments.draws
    for length, profile_error in errors.items():
        model = job.model if length is None else averages.model(length)
        weights = {"weights_sha256": job.origin.sha256 if length is None else weights_digest(model)}
        likelihood = Likelihood(model.to(job.device), job.split, job.seed, job.batch)
        compute = partial(likelihood.elbo, draws=draws)
        bits = job.stored.over_images("ELBO", compute, job.count, draws, job.batch // draws, **weights)
        own = bits if own is None else own
        mean, difference = estimate(bits), estimate((bits - own).mean(1, keepdim=True))
        point = {"length": length, "profile_error": profile_error, **weights, "distance": None}
        if distance:
            point["distance"] = distance(job.samples(model, sampler, job.seed, arguments.samples, **weights))
        point |= {"bits_per_dim": mean.mean, "error_images": known(mean.error_images)}
        point |= {"difference": difference.mean, "error_difference": known(difference.error_images)}
        points.append(point)
    return job.finish({**measured, "points": points}, figures.averages, show=_show)


def _show(found: EmaResult) -> None:
    print(f"{found.images} images of {found.split_text}, {found.draws} draws each; bound: {found.bound}")
    title = f"  {excerpt(found.distance)}" if found.distance else ""
    print(f"   length  profile error  bits/dim  less that of ema.decay{title}")
    for point in found.points:
        name = "ema.decay" if point.length is None else f"{point.length:9.3f}"
        error = "" if point.error_difference is None else f" +- {point.error_difference:.4f}"
        distance = "" if point.distance is None else f"  {point.distance:.4f}"
        print(
            f"{name}  {point.profile_error:13.1e}  {point.bits_per_dim:8.4f}  {point.difference:+.4f}{error}{distance}"
        )
