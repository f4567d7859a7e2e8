"""Evaluate a trained model: ``python tools/evaluate.py nll runs/digits --data data/digits``.

nll: bits/dim of a whole split, by the bound (ELBO) and, with --ode, by the probability-flow ODE. Prints the
numbers with their standard errors and all that defines them, and writes them to --json.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import Estimate, estimate
from fdtrain.diffusion.time_sampling import time_density
from fdtrain.errors import UserError, exit_code
from fdtrain.evaluation import nll
from fdtrain.evaluation.load import find_model, load_model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("nll", help="bits/dim of a split")
    command.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    command.add_argument("--data", required=True, help="a packed data set")
    command.add_argument("--split", default="test")
    command.add_argument("--draws", type=int, default=20, help="draws of dequantisation, time and noise per image")
    command.add_argument("--ode", action="store_true", help="the ODE likelihood too (many more evaluations)")
    command.add_argument("--tolerance", type=float, default=1e-5, help="of the ODE's adaptive solver")
    command.add_argument("--images", type=int, help="the first so many images only; the result says so")
    command.add_argument("--float64", action="store_true", help="compute in double precision")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--batch", type=int, default=256)
    command.add_argument("--json", type=Path, help="write the numbers there too")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    for name in ("draws", "batch", "images", "tolerance"):
        if getattr(arguments, name) is not None and getattr(arguments, name) <= 0:
            parser.error(f"--{name} must be positive")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    model, spec = load_model(arguments.model)
    split = Split(arguments.data, arguments.split)
    nll.check_same_images(spec, split)
    images = range(min(arguments.images or len(split), len(split)))
    dtype = torch.float64 if arguments.float64 else torch.float32
    model = model.to(arguments.device, dtype)
    common = {"seed": arguments.seed, "batch": arguments.batch, "dtype": dtype}
    result = {
        "model": str(find_model(arguments.model)[1]),
        "dataset": split.description.name,
        "split": split.name,
        "images": len(images),
        "images_in_split": len(split),
        "levels": spec.levels,
        "dequantisation": "uniform",
        "dtype": str(dtype).removeprefix("torch."),
        "seed": arguments.seed,
    }
    with tqdm(total=len(images), unit="image", desc="ELBO", disable=not sys.stderr.isatty()) as bar:
        # Draws of t for the bound are spread as the model's scale suggests; any density gives the same mean.
        density = time_density("asinh", spec.scale)
        values = nll.elbo(model, spec, split, images, density, arguments.draws, progress=bar.update, **common)
    result["elbo"] = _report("ELBO", estimate(values), f"{arguments.draws} draws per image")
    if arguments.ode:
        with tqdm(total=len(images), unit="image", desc="ODE", disable=not sys.stderr.isatty()) as bar:
            values, nfe = nll.ode(model, spec, split, images, arguments.tolerance, progress=bar.update, **common)
        trace = "exact" if spec.dims <= nll.EXACT_TRACE_DIMS else "Hutchinson, Rademacher"
        about = f"Dormand-Prince at {arguments.tolerance:g}, {nfe:.0f} evaluations, {trace} trace"
        result["ode"] = _report("ODE ", estimate(values), about) | {
            "tolerance": arguments.tolerance,
            "nfe": nfe,
            "trace": trace,
        }
    of = f"all {len(split)}" if len(images) == len(split) else f"the first {len(images)} of {len(split)}"
    print(f"{of} images of {split.description.name}/{split.name}, {spec.levels} levels, {result['dtype']}")
    if arguments.json:
        _write(result, arguments.json)


def _report(name: str, e: Estimate, about: str) -> dict[str, float]:
    errors = f"standard error over images {e.error_images:.4f}"
    if e.draws > 1:
        errors = f"standard error over draws {e.error_draws:.4f}, over images {e.error_images:.4f}"
    print(f"{name} {e.mean:.4f} bits/dim  ({errors}; {about})")
    return {
        "bits_per_dim": e.mean,
        "error_draws": e.error_draws if e.draws > 1 else None,
        "error_images": e.error_images,
        "draws": e.draws,
    }


def _write(result: dict, path: Path) -> None:
    try:
        path.write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json: cannot write {path} ({error.strerror}).") from error


if __name__ == "__main__":
    sys.exit(exit_code(main))
