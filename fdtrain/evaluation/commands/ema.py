"""Bits/dim, and distances of samples, against the relative length of the average of the weights.

    fdtrain evaluate ema runs/digits --lengths 0.03 0.05 0.1 0.15

For runs with ema.lengths (docs/training.md). Every length, and the run's own average of ema.decay, is evaluated on the
same images with the same draws. Writes the run's evaluation/ema_SPLIT.json and the pictures made of it (.png) beside
it, and shows them in the run's TensorBoard. When it is interrupted, the same command continues.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.diffusion.likelihood import estimate
from fdtrain.errors import check_at_least, excerpt
from fdtrain.evaluation import feature_networks, figures, image_sets, nll
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import frechet_distance
from fdtrain.evaluation.job import Job, Shown
from fdtrain.evaluation.job import add_arguments as add_job_arguments
from fdtrain.evaluation.load import find_model, open_averages, weights_digest
from fdtrain.evaluation.result import EmaResult
from fdtrain.evaluation.sampler import Sampler, add_sampling_arguments
from fdtrain.evaluation.samples import to_pixels
from fdtrain.networks.model import Model
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
    start = time.perf_counter()
    job = _Averages(arguments)
    content = {**job.settings, **job.distances, "points": job.points(), "device": str(arguments.device)}
    if distributed.rank() != 0:
        return None
    found = EmaResult.model_validate({**content, "seconds": time.perf_counter() - start})
    shown = job.write(found, figures.averages(found))
    _show(found)
    job.stored.discard()
    return shown


class _Averages(Job):
    """What is computed of each average."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(arguments, "ema", pictures=True)
        self.averages = open_averages(*find_model(self.origin.folder))
        self.lengths = sorted(set(arguments.lengths or self.averages.served(LENGTHS)))
        for length in self.lengths:
            self.averages.fit(length)
        self.sampler = Sampler.of(arguments, self.spec, self.origin.home, self.origin.sha256)
        self.settings |= {
            "kind": "ema",
            "images": self.count,
            "bound": self.spec.bound.describe(),
            "draws": arguments.draws,
            "tracked": self.averages.lengths,
            "snapshots": len({each.step for each in self.averages.tracked}),
        }
        self.features, self.distances = None, {}
        if arguments.features:
            self.features = feature_networks.open_features(arguments.features, self.device)
            self.distances = {
                "distance": self.features.title,
                "features": self.features.describe(),
                "samples": arguments.samples,
                "drawing": self.sampler.describe(),
            }

    def points(self) -> list[dict[str, Any]]:
        """The run's own average, and then each length."""
        distance = self._distance(self.features) if self.features else None
        points, own = [], None
        for length in (None, *self.lengths):
            model = self.model if length is None else self.averages.model(length)
            sha256 = self.origin.sha256 if length is None else weights_digest(model)
            model.to(self.arguments.device)
            bits = self._bits(model, sha256)
            own = bits if own is None else own
            mean, difference = estimate(bits), estimate((bits - own).mean(1, keepdim=True))
            points.append(
                {
                    "length": length,
                    "profile_error": 0.0 if length is None else self.averages.fit(length).error,
                    "weights_sha256": sha256,
                    "bits_per_dim": mean.mean,
                    "error_images": _known(mean.error_images),
                    "difference": difference.mean,
                    "error_difference": _known(difference.error_images),
                    "distance": distance(model, sha256) if distance else None,
                }
            )
        return points

    def _bits(self, model: Model, sha256: str) -> Tensor:
        """Of every image and draw, ``(images, draws)``."""
        draws, batch = self.arguments.draws, self.arguments.batch
        compute = partial(
            nll.elbo,
            model,
            self.split,
            density=nll.time_density_of(model.spec.bound.interval, model.spec.scale),
            draws=draws,
            seed=self.arguments.seed,
            batch=batch,
        )
        return self._over_images("ELBO", self.count, batch // draws, draws, compute, weights_sha256=sha256)

    def _distance(self, network: FeatureNetwork) -> Callable[[Model, str], float]:
        """The distance of the samples of a model, whose checksum is given too, to the split."""
        arguments, spec = self.arguments, self.model.spec
        data = self.moments(network, image_sets.of_split(self.split))

        def distance(model: Model, sha256: str) -> float:
            def solve(images: range) -> Tensor:
                return self.sampler.draw(model, images, arguments.seed).flatten(1).double()

            options = {"weights_sha256": sha256, **self.sampler.describe()}
            shared = arguments.samples, min(arguments.batch, -(-arguments.samples // 4)), spec.dims
            levels = self._over_images("samples", *shared, solve, **options).to(torch.uint8).view(-1, *spec.shape)
            pixels = image_sets.in_memory("samples", to_pixels(levels, spec.levels))
            return frechet_distance(self.moments(network, pixels), data)

        return distance

    def _over_images(self, name: str, count: int, chunk: int, columns: int, compute, **options: Any) -> Tensor:
        return self.over_images(name, compute, chunk, columns, count, images=count, ema=name, **options)


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error


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
