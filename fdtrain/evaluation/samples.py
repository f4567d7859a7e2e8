"""How images are sampled: solver, grid, evaluations, labels, guidance, with the same options for every command.

Image ``i`` depends on (seed, ``i``) alone, whatever the batch and however many processes.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.predictors import x0_hat
from fdtrain.diffusion.solvers import DEFAULT, GRID, SOLVERS, sample, time_grid
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation import grids
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.plugins import code_of
from fdtrain.randomness import Purpose, normal

STEPS = 50
PATH_IMAGES = 8
"""Images of a denoising path, the sample itself included."""


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solver", default=DEFAULT, help=f"one of {', '.join(SOLVERS)} (default: {DEFAULT})")
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
        check_solver(arguments.solver, "--solver")
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
        check_solver(solver, f"{prefix}solver")
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

    @staticmethod
    def within(solver: str, grid: str, nfe: int) -> "Sampler":
        """With so many evaluations, or less where a step takes several; one step at least."""
        return Sampler(solver, grid, max(1, nfe // SOLVERS[solver].evaluations_per_step))

    @property
    def nfe(self) -> int:
        """Evaluations of the network for each image."""
        return evaluations(self.solver, self.steps, self.guidance)

    def describe(self) -> dict[str, Any]:
        """As results and finished parts have it; a solver of the user's own with its code."""
        code = [f" of {file}, SHA-256 {sha[:12]}" for file, sha in code_of(("solver", self.solver)).items()]
        return {
            "solver": "".join([self.solver, *code]),
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
        """Images in one batch before they are rounded to levels: :func:`solve`."""
        labels = self.labels(images, model.spec)
        return solve(model, images, labels, self.times(model.spec), self.solver, seed, self.guidance)

    def draw(self, model: Model, images: range, seed: int) -> Tensor:
        """Images in one batch: levels ``(n, C, H, W)`` uint8, on the CPU.

        Raises:
            UserError: the model's output is not finite.
        """
        return quantise(self.solve(model, images, seed), model.spec.levels).cpu()


def check_solver(name: str, option: str) -> None:
    if name not in SOLVERS:
        raise UserError(f"{option}: there is no {name!r}; there are {', '.join(SOLVERS)}.")


def evaluations(solver: str, steps: int, guidance: float) -> int:
    """A guided step evaluates the network with the labels and without."""
    return steps * SOLVERS[solver].evaluations_per_step * (1 if guidance == 1 else 2)


@torch.no_grad()
def solve(
    model: Model,
    images: Sequence[int],
    labels: Sequence[int] | None,
    times: Sequence[float],
    solver: str = DEFAULT,
    seed: int = 0,
    guidance: float = 1.0,
    observe: Callable[[float, Tensor, Tensor], object] | None = None,
) -> Tensor:
    """The images with the given numbers before they are rounded to levels, ``(n, C, H, W)`` on the model's device.

    Args:
        labels: one class per image, for a class-conditional model.
        times: falling from 1 to 0, or within the model's interval: :func:`fdtrain.diffusion.solvers.time_grid`.
        guidance: 1 samples the model itself; see :meth:`Model.field`.
        observe: as of :func:`fdtrain.diffusion.solvers.sample`.

    Raises:
        UserError: the model's output is not finite, or it cannot be guided.
    """
    device = next(model.parameters()).device
    field = model.field(torch.tensor(labels, device=device) if labels else None, guidance)

    def noise(step: int) -> Tensor:
        return normal(model.spec.shape, device, seed, Purpose.SAMPLE, [(image, step + 1) for image in images])

    # noise(-1) is the draw of x_1.
    x = sample(field, noise(-1), times, solver, noise, observe, model.spec.bound.interval)
    if not torch.isfinite(x).all():
        raise UserError("the model's output is not finite: its weights are broken, or training diverged.")
    return x


def denoising_paths(
    model: Model,
    images: Sequence[int],
    labels: Sequence[int] | None,
    times: Sequence[float],
    solver: str = DEFAULT,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Predicted images on the way to samples, ``(n, PATH_IMAGES, C, H, W)`` uint8 below ``spec.levels``, on the CPU.

    The last are the samples themselves. Arguments and errors as of :func:`solve`.
    """
    levels, wanted = model.spec.levels, path_times(times)
    parts = [torch.empty(0, PATH_IMAGES, *model.spec.shape, dtype=torch.uint8)]
    for i in range(0, len(images), batch):
        part, path = slice(i, i + batch), {}

        def observe(t: float, x: Tensor, F: Tensor, path: dict[float, Tensor] = path) -> None:
            if t in wanted:
                time = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
                path[t] = quantise(x0_hat(F, x, time), levels)

        x = solve(model, images[part], labels and labels[part], times, solver, seed, observe=observe)
        path[times[-1]] = quantise(x, levels)
        parts.append(torch.stack([path[t] for t in wanted], 1).cpu())
    return torch.cat(parts)


def path_times(times: Sequence[float]) -> list[float]:
    """The times of the images of a denoising path."""
    # Evenly in time, of the times there are: a grid that is dense near the data changes little there.
    even = np.linspace(1, 0, PATH_IMAGES)[:-1]
    return [*(times[int(np.abs(np.asarray(times[:-1]) - t).argmin())] for t in even), times[-1]]


def to_pixels(levels: Tensor, count: int) -> Tensor:
    """Images of ``count`` levels to the range 0 to 255, uint8."""
    return (levels.float() * (255 / (count - 1))).round().to(torch.uint8)
