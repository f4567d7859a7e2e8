"""Sample images from a trained model: ``fdtrain sample runs/digits --out samples.png``.

Alone, or on every process of a launch: ``torchrun --nproc-per-node 2 -m fdtrain sample ...``.
Image i depends on the seed and i alone, on any number of processes. The output's ending chooses the form:

    samples.png      one sheet of all images
    samples.npz      arr_0, uint8 (n, H, W, C), as the common evaluation suites read it
    samples/         one PNG an image; with --shards a packed data set

A command that was stopped goes on where it was when it is repeated (docs/sampling.md).
"""

import argparse
from functools import partial
from pathlib import Path

from fdtrain import distributed
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation import process
from fdtrain.evaluation.load import add_length, open_model
from fdtrain.evaluation.sample_files import Output
from fdtrain.evaluation.samples import Sampler, add_sampling_arguments
from fdtrain.evaluation.stored_rows import RowStore, bar
from fdtrain.main import add_allow_code
from fdtrain.networks.model import Model
from fdtrain.randomness import check_seed

FORMS = {".png": "sheet", ".npz": "npz"}
OTHER_FILES = {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".svg", ".pdf", ".npy", ".pt", ".zip", ".tar"}
"""Endings that nobody gives a folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    add_length(parser)
    add_allow_code(parser)
    parser.add_argument("--out", type=Path, required=True, help="a .png or .npz file, or a folder")
    parser.add_argument("--shards", action="store_true", help="the folder becomes a packed data set")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    add_sampling_arguments(parser)
    parser.add_argument("--device", help="such as cpu or cuda:1; by default the GPU, where there is one")


def run(arguments: argparse.Namespace) -> None:
    try:
        _run(arguments)
    except KeyboardInterrupt:
        raise UserError(f"interrupted. {process.AGAIN}") from None
    except OSError as error:
        raise UserError(f"--out: cannot write {arguments.out} ({error.strerror or error}).") from error


def _run(arguments: argparse.Namespace) -> None:
    check_at_least(arguments, 1, "images")
    check_seed(arguments.seed, "--seed")
    form = _form(arguments)
    with process.process_group(arguments.device) as place:
        model, origin = open_model(arguments.model, arguments.ema_length, shared=True)
        spec = model.spec
        sampler = Sampler.of(arguments, spec, origin)
        request = {
            "images": arguments.images,
            "seed": arguments.seed,
            **sampler.describe(),
            "form": form,
            "weights_sha256": origin.sha256,
            # Noise is the same on any CPU, and on any GPU of a kind, but not on both.
            "noise": place.type,
        }
        process.check_same(request)
        output = Output(arguments.out, form, request)
        complete = distributed.found_by_first(output.complete)
        if not complete:
            with output.held():
                _sample(arguments, model.to(place), sampler, output.parts)
                distributed.of_all(None)  # Wait for all.
                if distributed.rank() == 0:
                    output.write(
                        spec, partial(sampler.labels, spec=spec), origin.identity() | {"dataset": spec.dataset}
                    )
    if distributed.rank() == 0:
        already = ", complete already" if complete else ""
        print(f"{output.path}: {arguments.images} images, {sampler.solver}, {sampler.nfe} evaluations each{already}")


def _sample(arguments: argparse.Namespace, model: Model, sampler: Sampler, parts: RowStore) -> None:
    """Sample what is missing, the ranks in turn batch by batch."""
    missing = distributed.broadcast(parts.missing(arguments.batch) if distributed.rank() == 0 else [])
    mine = missing[distributed.rank() :: distributed.world_size()]
    with bar(sum(map(len, mine)), "sampling") as shown:
        for chunk in mine:
            parts.save(chunk, sampler.draw(model, chunk, arguments.seed))
            shown.update(len(chunk))


def _form(arguments: argparse.Namespace) -> str:
    ending = arguments.out.suffix.lower()
    if ending in OTHER_FILES:
        raise UserError(f"--out: {ending} files are not written. Give a .png or .npz file, or a folder.")
    if arguments.shards and ending in FORMS:
        raise UserError(f"--shards: {arguments.out} must be a folder.")
    return FORMS.get(ending, "shards" if arguments.shards else "png")
