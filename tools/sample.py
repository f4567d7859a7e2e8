"""Sample images from a trained model: ``python tools/sample.py runs/digits --out samples.png``.

The output's ending chooses the form: a ``.png`` file is one sheet of all images, a folder gets one PNG an
image. Image i depends on the seed and i alone.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from fdtrain.diffusion.solvers import GRIDS, SOLVERS, time_grid
from fdtrain.errors import UserError, exit_code
from fdtrain.evaluation import samples
from fdtrain.evaluation.load import load_model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("--out", type=Path, required=True, help="a .png file for one sheet, or a folder")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="solver steps from t = 1 to t = 0")
    parser.add_argument("--solver", choices=SOLVERS, default="sde2")
    parser.add_argument("--grid", choices=GRIDS, default="asinh", help="spacing of the times")
    parser.add_argument("--label", type=int, help="class, for a class-conditional model; default: all in turn")
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="W",
        help="F without label + W (F with it - F without); needs a model trained with network.label_dropout",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    for name in ("images", "steps", "batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if not math.isfinite(arguments.guidance):
        parser.error("--guidance must be finite")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    model, spec = load_model(arguments.model)
    labels = _labels(arguments, len(spec.classes))
    times = time_grid(arguments.grid, arguments.steps, spec.scale)
    with tqdm(total=arguments.images, unit="image", disable=not sys.stderr.isatty()) as bar:
        drawn = samples.draw(
            model.to(arguments.device),
            spec,
            range(arguments.images),
            labels,
            times,
            arguments.solver,
            arguments.seed,
            arguments.batch,
            arguments.guidance,
            bar.update,
        )
    pixels = samples.to_pixels(drawn.levels, spec.levels)
    try:
        _write(pixels, arguments.out, samples.zoom_for(spec.size))
    except OSError as error:
        raise UserError(f"--out: cannot write {arguments.out} ({error.strerror}).") from error
    evaluations = arguments.steps * SOLVERS[arguments.solver].evaluations_per_step
    if arguments.guidance != 1:
        evaluations *= 2
    print(f"{arguments.out}: {arguments.images} images, {arguments.solver}, {evaluations} evaluations each")


def _labels(arguments: argparse.Namespace, classes: int) -> list[int] | None:
    if not classes:
        if arguments.label is not None:
            raise UserError("--label: this model was trained without labels.")
        return None
    if arguments.label is not None and not 0 <= arguments.label < classes:
        raise UserError(f"--label {arguments.label}: this model has classes 0 to {classes - 1}.")
    return [i % classes if arguments.label is None else arguments.label for i in range(arguments.images)]


def _write(pixels: torch.Tensor, out: Path, zoom: int) -> None:
    if out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        samples.save_png(samples.grid(pixels, max(1, round(len(pixels) ** 0.5)), zoom), out)
        return
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        samples.save_png(image, out / f"{i:06d}.png")


if __name__ == "__main__":
    sys.exit(exit_code(main))
