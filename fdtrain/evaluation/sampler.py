"""How images are sampled: solver, grid, evaluations, labels, guidance. The same options for every tool that samples."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.solvers import DEFAULT, GRID, SOLVERS, time_grid
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation import grids, samples
from fdtrain.networks.model import Model, ModelSpec


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solver", choices=SOLVERS, default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--grid", help=grids.HELP)
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=int, help=f"solver steps from t = 1 to t = 0 (default: {STEPS}, or those of --grid)"
    )
    length.add_argument("--nfe", type=int, help="instead: evaluations of the network for each image")
    parser.add_argument("--label", type=int, help="class, for a class-conditional model; default: all in turn")
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="W",
        help="F without label + W (F with it - F without); needs a model trained with network.label_dropout",
    )
    parser.add_argument("--batch", type=int, default=64, help="images that are computed together (default: 64)")


STEPS = 50


@dataclass(frozen=True)
class Sampler:
    """Everything about samples but their model, seed and number.

    ``grid`` is a name or times. ``label`` None: all classes in turn.
    """

    solver: str = DEFAULT
    grid: str | tuple[float, ...] = GRID
    steps: int = STEPS
    label: int | None = None
    guidance: float = 1.0

    @staticmethod
    def of(arguments: argparse.Namespace, spec: ModelSpec, folder: Path, weights_sha256: str) -> "Sampler":
        """From the command line, for the model with these weights, beside which its optimised grids lie.

        Raises:
            UserError: the model cannot be sampled so.
        """
        check_at_least(arguments, 1, "steps", "nfe", "batch")
        solver, guidance, steps = arguments.solver, arguments.guidance, arguments.steps
        if arguments.nfe:
            per_step = evaluations(solver, 1, guidance)
            steps, over = divmod(arguments.nfe, per_step)
            if over:
                raise UserError(f"--nfe {arguments.nfe}: a step of {solver} here takes {per_step} evaluations.")
        home = folder, weights_sha256
        return Sampler.checked(spec, *home, solver, arguments.grid, steps, arguments.label, guidance, prefix="--")

    @staticmethod
    def checked(
        spec: ModelSpec,
        folder: Path,
        weights_sha256: str,
        solver: str = DEFAULT,
        grid: str | Sequence[float] | None = None,
        steps: int | None = None,
        label: int | None = None,
        guidance: float = 1.0,
        prefix: str = "",
    ) -> "Sampler":
        """As :meth:`of`, from values. ``grid`` is a text as of the command line, or times; ``prefix`` stands before the
        names of options in messages.

        Raises:
            UserError: the model cannot be sampled so.
        """
        if solver not in SOLVERS:
            raise UserError(f"{prefix}solver: there is no {solver!r}; there are {', '.join(SOLVERS)}.")
        if not math.isfinite(guidance):
            raise UserError(f"{prefix}guidance must be finite.")
        if guidance != 1 and not spec.null_class:
            raise UserError(f"{prefix}guidance needs a model trained with network.label_dropout above 0.")
        if label is not None:
            if not spec.classes:
                raise UserError(f"{prefix}label: this model was trained without labels.")
            if not 0 <= label < len(spec.classes):
                raise UserError(f"{prefix}label {label}: this model has classes 0 to {len(spec.classes) - 1}.")
        times = GRID if grid is None else grids.read_grid(grid, f"{prefix}grid")
        steps = (len(times) - 1 if isinstance(times, tuple) else STEPS) if steps is None else steps
        if steps < 1:
            raise UserError(f"{prefix}steps must be at least 1.")
        if isinstance(times, tuple) and steps != len(times) - 1:
            raise UserError(f"{prefix}grid: {len(times)} times are {len(times) - 1} steps, not {steps}.")
        if times == grids.OPTIMISED:
            times = grids.load_optimised(folder, weights_sha256, solver, steps)
        sampler = Sampler(solver, times, steps, label, guidance)
        try:
            sampler.times(spec)
        except ValueError as error:
            raise UserError(f"{prefix}grid: {error}.") from error
        return sampler

    def times(self, spec: ModelSpec) -> list[float]:
        """Falling from 1 to 0, or within the model's interval.

        Raises:
            ValueError: there are no such times.
        """
        return time_grid(self.grid, self.steps, spec.levels, spec.dims, spec.bound.interval)

    @property
    def nfe(self) -> int:
        """Evaluations of the network for each image."""
        return evaluations(self.solver, self.steps, self.guidance)

    def describe(self) -> dict[str, Any]:
        return {
            "solver": self.solver,
            "grid": list(self.grid) if isinstance(self.grid, tuple) else self.grid,
            "steps": self.steps,
            "nfe": self.nfe,
            "label": self.label,
            "guidance": self.guidance,
        }

    def labels(self, images: range, spec: ModelSpec) -> list[int] | None:
        """Class of each image, of a class-conditional model."""
        if not spec.classes:
            return None
        return [i % len(spec.classes) if self.label is None else self.label for i in images]

    def solve(self, model: Model, images: range, seed: int) -> Tensor:
        """Images in one batch before they are rounded to levels: :func:`samples.solve`."""
        labels = self.labels(images, model.spec)
        return samples.solve(model, images, labels, self.times(model.spec), self.solver, seed, self.guidance)

    def draw(self, model: Model, images: range, seed: int) -> Tensor:
        """Images in one batch: levels ``(n, C, H, W)`` uint8, on the CPU.

        Raises:
            UserError: the model's output is not finite.
        """
        return quantise(self.solve(model, images, seed), model.spec.levels).cpu()


def evaluations(solver: str, steps: int, guidance: float) -> int:
    """A guided step evaluates the network with the labels and without."""
    return steps * SOLVERS[solver].evaluations_per_step * (1 if guidance == 1 else 2)
