"""What evaluations of a model on a split share: options, model and images, stored values, distances, the result."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.diffusion.objective import quantise
from fdtrain.errors import UserError
from fdtrain.evaluation import image_sets, result
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import Gaussian, frechet_distance
from fdtrain.evaluation.image_sets import PixelSet
from fdtrain.evaluation.likelihood import Likelihood, check_same_images
from fdtrain.evaluation.load import open_model
from fdtrain.evaluation.measure import measure
from fdtrain.evaluation.result import RESULTS, split_identity
from fdtrain.evaluation.run_folder import open_split
from fdtrain.evaluation.samples import Sampler, to_pixels
from fdtrain.evaluation.stored_rows import StoredValues
from fdtrain.networks.model import Model

if TYPE_CHECKING:
    from fdtrain.evaluation.figures import Plot  # Needs matplotlib, which not every command does.

Shown = tuple[Path, int, dict[str, Path]]
"""A run, the step, and pictures by name, for its TensorBoard."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("--data", help="a packed data set (default: the run's own)")
    parser.add_argument("--split", help="of it (default: the run's, or test)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result there too; a must for pictures of no run")
    parser.add_argument("--device", help="such as cpu or cuda:1; by default the GPU, where there is one")


class Job:
    """A model and the split that it is evaluated on. What is computed of images is stored until the result is written.

    ``settings`` are what a result has of its model and split; a command adds its own.

    Args:
        kind: of the result; with ``split`` it names the file.
        pictures: the result has some, so it needs a place.
        first: results of the first ``--images`` are called so.

    Raises:
        UserError: there is no such model or split, or one is not of the other.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        kind: str,
        dtype: torch.dtype = torch.float32,
        pictures: bool = False,
        first: bool = True,
    ):
        self.begin = time.perf_counter()
        self.arguments, self.kind, self.device = arguments, kind, arguments.device
        self.model, self.origin = open_model(arguments.model, getattr(arguments, "ema_length", None), shared=True)
        if pictures and not self.origin.results and not arguments.json:
            raise UserError(f"{arguments.model} is not a run: say with --json where the result goes.")
        self.split = open_split(arguments.model, arguments.data, arguments.split)
        check_same_images(self.model.spec, self.split)
        self.model.to(self.device, dtype)
        self.spec, self.seed, self.batch = self.model.spec, arguments.seed, arguments.batch
        self.count = min(arguments.images or len(self.split), len(self.split))
        part = self.count if first and self.count < len(self.split) else None
        self.paths = [p for p in (self.origin.result_file(kind, self.split.name, part), arguments.json) if p]
        self.likelihood = Likelihood(self.model, self.split, self.seed, self.batch, dtype)
        self.settings = {"kind": kind, **self.origin.identity(), **split_identity(self.split)}
        self.settings |= {"seed": self.seed, "batch": self.batch}
        self.stored = StoredValues(self.paths[0].parent if self.paths else None, self.device, self.settings)

    def samples(self, model: Model, sampler: Sampler, seed: int, count: int, **request: Any) -> Tensor:
        """Before they are rounded to levels: ``(count, C, H, W)`` float32 on the CPU."""

        def solve(images: range) -> Tensor:
            return sampler.solve(model, images, seed).flatten(1).double().cpu()

        options = sampler.describe() | {"seed": seed} | request
        name = f"{sampler.solver}, {options['grid']}, {sampler.nfe}"
        # Smaller than a batch where there are few, so that several processes have something to share.
        chunk = min(self.batch, -(-count // 4))
        found = self.stored.over_images(name, solve, count, self.spec.dims, chunk, **options)
        return found.float().view(-1, *self.spec.shape)

    def distance_to_split(self, network: FeatureNetwork) -> Callable[[Tensor], float]:
        """The Frechet distance of :meth:`samples` to all images of the split."""

        def moments(images: PixelSet) -> Gaussian:
            return measure(network, images, self.batch, self.device).moments

        data, levels = moments(image_sets.of_split(self.split)), self.spec.levels

        def distance(x: Tensor) -> float:
            pixels = to_pixels(quantise(x, levels), levels)
            return frechet_distance(moments(image_sets.in_memory("samples", pixels)), data)

        return distance

    def finish(
        self,
        numbers: dict[str, Any],
        plots: "Callable[[Any], dict[str, Plot]] | None" = None,
        values: dict[str, Tensor] | None = None,
        show: Callable[[Any], None] = lambda found: None,
    ) -> Shown | None:
        """Print the result of ``numbers`` and the settings, and write it, with its plots and each image's values beside
        it, where the user wants them.

        Returns:
            What is to be shown in TensorBoard, of a run that has plots.
        """
        if distributed.rank() != 0:
            return None
        measured = {"device": str(self.device), "seconds": time.perf_counter() - self.begin}
        found = RESULTS[self.kind].model_validate({**self.settings, **numbers, **measured})
        show(found)
        drawn, pictures = plots(found) if plots else {}, {}
        for path in self.paths:
            result.write(found, path)
            if values:
                result.write_values(values, path.with_suffix(".safetensors"))
            pictures = {name: path.with_name(f"{path.stem}_{name}.png") for name in drawn}
            for name, plot in drawn.items():
                plot.save(pictures[name])
            if pictures:
                print(f"{path}: {', '.join(p.name for p in pictures.values())}")
        self.stored.discard()
        return (self.origin.run, self.origin.step or 0, pictures) if pictures and self.origin.run else None


def known(error: float) -> float | None:
    """A standard error, where it can be had."""
    return None if math.isnan(error) else error
