"""How images are sampled: solver, grid, evaluations, labels, guidance, with the same options for every command.

Image ``i`` depends on (seed, ``i``) alone, whatever the batch and however many processes.
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.predictors import x0_hat
from fdtrain.diffusion.solvers import DEFAULT, GRID, PUBLISHED, SOLVERS, check_falling, parse_grid, sample, time_grid
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation.load import ModelOrigin
from fdtrain.evaluation.result import invalid, write
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.plugins import code_of
from fdtrain.randomness import Purpose, normal

STEPS = 50
PATH_IMAGES = 8
"""Images of a denoising path, the sample itself included."""
GRIDS = "grids.json"
"""Of a run, an export or a checkpoint: ``{weights_sha256: {"SOLVER, N steps": times}}``."""
OPTIMISED = "optimised"
GRID_HELP = (
    f"spacing of the times: {GRID}, or with ends as {GRID}:0.005,0.07; {', '.join(PUBLISHED)}; times as 1,0.6,0.2,0, "
    f"or a file of them; or {OPTIMISED}: what fdtrain evaluate grid has found (default: {GRID})"
)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solver", default=DEFAULT, help=f"one of {', '.join(SOLVERS)} (default: {DEFAULT})")
    parser.add_argument("--grid", help=GRID_HELP)
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

    ``grid`` is a name or times. ``label`` None: all classes in turn. What cannot be is refused by :meth:`checked`.
    """

    solver: str = DEFAULT
    grid: str | tuple[float, ...] = GRID
    steps: int = STEPS
    label: int | None = None
    guidance: float = 1.0

    @staticmethod
    def of(arguments: argparse.Namespace, spec: ModelSpec, origin: ModelOrigin) -> "Sampler":
        """:meth:`checked` of the options of :func:`add_sampling_arguments`."""
        check_at_least(arguments, 1, "steps", "nfe", "batch")
        names = ("solver", "grid", "steps", "label", "guidance", "nfe")
        return Sampler.checked(spec, origin, **{name: getattr(arguments, name) for name in names}, prefix="--")

    @staticmethod
    def checked(
        spec: ModelSpec,
        origin: ModelOrigin | None,
        solver: str = DEFAULT,
        grid: str | Sequence[float] | None = None,
        steps: int | None = None,
        label: int | None = None,
        guidance: float = 1.0,
        nfe: int | None = None,
        prefix: str = "",
    ) -> "Sampler":
        """For a model.

        Args:
            origin: of the model, beside which its optimised grids lie; None: it has none.
            grid: a text as of the command line, or times.
            nfe: evaluations for each image, instead of steps.
            prefix: stands before the names of options in messages.

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
        if nfe is not None:
            steps, over = divmod(nfe, per_step := Sampler(solver, steps=1, guidance=guidance).nfe)
            if over:
                raise UserError(f"{prefix}nfe {nfe}: a step of {solver} here takes {per_step} evaluations.")
        times = GRID if grid is None else read_grid(grid, f"{prefix}grid")
        steps = (len(times) - 1 if isinstance(times, tuple) else STEPS) if steps is None else steps
        if steps < 1:
            raise UserError(f"{prefix}steps must be at least 1.")
        if times == OPTIMISED:
            if origin is None:
                raise UserError(f"{prefix}grid: {times} times are of a trained model. Name another grid.")
            times = load_optimised(origin.home, origin.sha256, solver, steps)
        return Sampler(solver, times, steps, label, guidance).with_times(spec, f"{prefix}grid")

    @staticmethod
    def within(solver: str, grid: str, nfe: int) -> "Sampler":
        """With so many evaluations, or less where a step takes several; one step at least. Raises UserError: there is
        no such solver."""
        check_solver(solver, "solver")
        return Sampler(solver, grid, max(1, nfe // SOLVERS[solver].evaluations_per_step))

    def times(self, spec: ModelSpec) -> list[float]:
        """Falling from 1 to 0, or within the model's interval. Raises ValueError: there are no such times."""
        return time_grid(self.grid, self.steps, spec.levels, spec.dims, spec.bound.interval)

    def with_times(self, spec: ModelSpec, option: str) -> "Sampler":
        """Itself. Raises UserError: there are no such times, and which ``option`` asked for them."""
        try:
            self.times(spec)
        except ValueError as error:
            raise UserError(f"{option}: {error}.") from error
        return self

    @property
    def nfe(self) -> int:
        """Evaluations of the network for each image. A guided step takes them with the labels and without."""
        return self.steps * SOLVERS[self.solver].evaluations_per_step * (1 if self.guidance == 1 else 2)

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

    def labels(self, images: Sequence[int], spec: ModelSpec) -> list[int] | None:
        """Class of each image, of a class-conditional model."""
        if not spec.classes:
            return None
        return [i % len(spec.classes) if self.label is None else self.label for i in images]

    @torch.no_grad()
    def solve(
        self,
        model: Model,
        images: Sequence[int],
        seed: int = 0,
        labels: Sequence[int] | None = None,
        observe: Callable[[float, Tensor, Tensor], object] | None = None,
    ) -> Tensor:
        """The images with the given numbers, in one batch, before they are rounded to levels: ``(n, C, H, W)`` on the
        model's device.

        Args:
            labels: one class per image; None: those of :meth:`labels`.
            observe: as of :func:`fdtrain.diffusion.solvers.sample`.

        Raises:
            UserError: the model's output is not finite, or it cannot be guided.
        """
        spec, device = model.spec, next(model.parameters()).device
        labels = self.labels(images, spec) if labels is None else labels
        field = model.field(torch.tensor(labels, device=device) if labels else None, self.guidance)

        def noise(step: int) -> Tensor:
            return normal(spec.shape, device, seed, Purpose.SAMPLE, [(image, step + 1) for image in images])

        # noise(-1) is the draw of x_1.
        x = sample(field, noise(-1), self.times(spec), self.solver, noise, observe, spec.bound.interval)
        if not torch.isfinite(x).all():
            raise UserError("the model's output is not finite: its weights are broken, or training diverged.")
        return x

    def draw(self, model: Model, images: Sequence[int], seed: int) -> Tensor:
        """:meth:`solve` rounded to levels, uint8, on the CPU."""
        return quantise(self.solve(model, images, seed), model.spec.levels).cpu()

    def paths(self, model: Model, images: Sequence[int], seed: int = 0, batch: int = 256) -> Tensor:
        """Predicted images on the way to samples: levels ``(n, PATH_IMAGES, C, H, W)`` uint8, on the CPU.

        The last are the samples themselves. Errors as of :meth:`solve`.
        """
        levels, times = model.spec.levels, self.path_times(model.spec)
        parts = [torch.empty(0, PATH_IMAGES, *model.spec.shape, dtype=torch.uint8)]
        for i in range(0, len(images), batch):
            path: dict[float, Tensor] = {}

            def observe(t: float, x: Tensor, F: Tensor, path: dict[float, Tensor] = path) -> None:
                if t in times:
                    time = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
                    path[t] = quantise(x0_hat(F, x, time), levels)

            path[times[-1]] = quantise(self.solve(model, images[i : i + batch], seed, observe=observe), levels)
            parts.append(torch.stack([path[t] for t in times], 1).cpu())
        return torch.cat(parts)

    def path_times(self, spec: ModelSpec) -> list[float]:
        """The times of the images of a denoising path."""
        times = self.times(spec)
        # Evenly in time, of the times there are: a grid that is dense near the data changes little there.
        even = np.linspace(1, 0, PATH_IMAGES)[:-1]
        return [*(times[int(np.abs(np.asarray(times[:-1]) - t).argmin())] for t in even), times[-1]]


def check_solver(name: str, option: str) -> None:
    if name not in SOLVERS:
        raise UserError(f"{option}: there is no {name!r}; there are {', '.join(SOLVERS)}.")


def read_grid(grid: str | Sequence[float], option: str = "--grid") -> str | tuple[float, ...]:
    """A grid's name as it is, or the times of a list or a file, separated by commas or white space, or themselves.
    Raises UserError: there is no such grid, or the times do not fall from 1 to 0."""
    try:
        if isinstance(grid, str):
            is_file = os.sep in grid or Path(grid).is_file()
            if not is_file and ("," not in grid or ":" in grid):
                if grid != OPTIMISED:
                    parse_grid(grid)
                return grid
            words = Path(grid).read_text() if is_file else grid
            grid = [float(word) for word in words.strip().strip("[]").replace(",", " ").split()]
        times = tuple(float(t) for t in grid)
        check_falling(times)
    except OSError as error:
        raise UserError(f"{option}: cannot read {grid} ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{option}: {error}. Give the name of a grid, or times that fall from 1 to 0.") from error
    return times


def load_optimised(folder: Path, weights_sha256: str, solver: str, steps: int) -> tuple[float, ...]:
    """The grid that was found for these weights. Raises UserError: there is none yet, or its file is damaged."""
    times = _stored_grids(folder / GRIDS).get(weights_sha256, {}).get(f"{solver}, {steps} steps")
    if times is None:
        raise UserError(
            f"--grid {OPTIMISED}: {folder} has none for these weights, {solver} and {steps} steps. First run "
            f"fdtrain evaluate grid {folder} --solver {solver} with as many evaluations."
        )
    return tuple(times)


def save_optimised(folder: Path, weights_sha256: str, solver: str, steps: int, times: Sequence[float]) -> Path:
    """Add a grid to those of a model. Raises UserError: the file is damaged, or cannot be written."""
    path = folder / GRIDS
    grids = _stored_grids(path)
    grids.setdefault(weights_sha256, {})[f"{solver}, {steps} steps"] = list(times)
    write(grids, path)
    return path


def _stored_grids(path: Path) -> dict[str, dict[str, list[float]]]:
    try:
        return TypeAdapter(dict[str, dict[str, list[float]]]).validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        reason = invalid(error) if isinstance(error, ValidationError) else error.strerror
        raise UserError(f"{path} is damaged ({reason}). Remove it, and run fdtrain evaluate grid again.") from error


def to_pixels(levels: Tensor, count: int) -> Tensor:
    """Images of ``count`` levels to the range 0 to 255, uint8."""
    return (levels.float() * (255 / (count - 1))).round().to(torch.uint8)
