"""What evaluations of a model on a split share: options, model and images, stored values, the result's files."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.evaluation import nll, result
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import FeatureMoments
from fdtrain.evaluation.image_sets import PixelSet
from fdtrain.evaluation.load import open_model
from fdtrain.evaluation.measure import measure
from fdtrain.evaluation.result import Result, split_identity
from fdtrain.evaluation.run_data import open_split
from fdtrain.evaluation.stored_rows import StoredValues

if TYPE_CHECKING:
    from fdtrain.evaluation.plotting import Plot  # Needs matplotlib, which not every command does.

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
    """A model and the split that it is evaluated on. What is computed of images is in ``stored`` until it is discarded.

    Args:
        kind: of the result; with ``split`` it names the file.
        pictures: the result has some, so it needs a place.

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
        self.arguments, self.kind, self.device = arguments, kind, arguments.device
        self.model, self.origin = open_model(arguments.model, getattr(arguments, "ema_length", None), shared=True)
        if pictures and not self.origin.results and not arguments.json:
            raise UserError(f"{arguments.model} is not a run: say with --json where the result goes.")
        self.split = open_split(arguments.model, arguments.data, arguments.split)
        nll.check_same_images(self.model.spec, self.split)
        self.model.to(self.device, dtype)
        self.spec, self.seed, self.batch = self.model.spec, arguments.seed, arguments.batch
        self.count = min(arguments.images or len(self.split), len(self.split))
        part = self.count if first and self.count < len(self.split) else None
        self.paths = [p for p in (self.origin.result_file(kind, self.split.name, part), arguments.json) if p]
        self.settings = {**self.origin.identity(), **split_identity(self.split), "seed": self.seed, "batch": self.batch}
        self.stored = StoredValues(self.paths[0].parent if self.paths else None, self.device)

    def over_images(
        self, name: str, compute: Callable[[range], Tensor], chunk: int, columns: int, count: int, **request: Any
    ) -> Tensor:
        """:meth:`StoredValues.over_images`; ``request`` is what the values depend on besides the settings."""
        return self.stored.over_images(name, count, max(1, chunk), columns, compute, self.settings | request)

    def moments(self, network: FeatureNetwork, images: PixelSet) -> FeatureMoments:
        """Of the features of all images of a set."""
        return measure(network, images, images.count, self.batch, self.device).moments

    def write(self, found: Result, plots: "dict[str, Plot] | None" = None) -> Shown | None:
        """Write the result, and its plots beside it, where the user wants them.

        Returns:
            What is to be shown in TensorBoard, of a run that has plots.
        """
        pictures: dict[str, Path] = {}
        for path in self.paths:
            result.write(found, path, "--json" if path == self.arguments.json else "the run's results")
            if plots is not None:
                pictures = {name: path.with_name(f"{path.stem}_{name}.png") for name in plots}
                for name, plot in plots.items():
                    plot.save(pictures[name])
                print(f"{path}: {', '.join(p.name for p in pictures.values())}")
        return (self.origin.run, self.origin.step or 0, pictures) if pictures and self.origin.run else None
