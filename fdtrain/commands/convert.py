"""Convert a published checkpoint of another program: ``fdtrain convert score_sde checkpoint_8.pth export/ddpmpp``.

    score_sde    DDPM++ continuous of score_sde_pytorch (Song et al. 2021), VP and sub-VP

The folder is an export, which fdtrain.load, every command and training.init_from read (docs/export.md). No pickled code
is run.
"""

import argparse
from pathlib import Path

from fdtrain.console import phase
from fdtrain.convert import score_sde
from fdtrain.evaluation.load import ModelOrigin, weights_digest
from fdtrain.export.write import UNKNOWN, write
from fdtrain.networks.model import parameter_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    programs = parser.add_subparsers(dest="program", metavar="PROGRAM", required=True)
    one = programs.add_parser("score_sde", help="DDPM++ continuous of score_sde_pytorch")
    one.add_argument("checkpoint", type=Path, help="such as checkpoint_8.pth of vp/cifar10_ddpmpp_continuous")
    one.add_argument("folder", type=Path, help="a new folder, or an earlier export, which is replaced")
    one.add_argument("--sde", choices=score_sde.SDES, default="vp", help="that it was trained with (default: vp)")
    one.add_argument("--weights", choices=score_sde.WEIGHTS, default="ema", help="default: ema, the averaged ones")
    one.add_argument("--size", type=int, default=32, help="height and width of its images (default: 32)")
    one.add_argument("--dataset", default="cifar10", help="name of its data (default: cifar10)")
    one.add_argument("--licence", default=UNKNOWN, help="for the model card (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    path, weights = arguments.checkpoint, arguments.weights
    with phase(f"reading {path}"):
        model, step = score_sde.convert(path, weights, arguments.sde, arguments.size, arguments.dataset)
    origin = ModelOrigin(path, weights_digest(model), None, step)
    source = f"{path.name} of score_sde_pytorch, {weights} weights, {arguments.sde}"
    with phase(f"writing {arguments.folder}"):
        write(model, origin, arguments.folder, licence=arguments.licence, source=source)
    options = model.spec.network_options
    shape = ", ".join(f"{name} {value}" for name, value in options.items())
    print(f"converted to {arguments.folder}: {parameter_count(model):,} parameters, {shape}")
