"""Evaluate a trained model: ``fdtrain evaluate nll runs/digits --data data/digits``.

Alone, or on every process of a launch: ``torchrun --nproc-per-node 2 -m fdtrain evaluate nll ...``, or DeepSpeed's.
The processes share the images, and the numbers do not depend on how many there are.
"""

import argparse

from fdtrain.evaluation import process
from fdtrain.evaluation.commands import curve, features, fid, grid, nll, report

COMMANDS = {"nll": nll, "features": features, "fid": fid, "curve": curve, "grid": grid, "report": report}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Given by DeepSpeed's launcher; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    style = argparse.RawDescriptionHelpFormatter
    for name, command in COMMANDS.items():
        description = command.__doc__ or ""
        command.add_arguments(
            commands.add_parser(name, help=description.splitlines()[0], description=description, formatter_class=style)
        )


def run(arguments: argparse.Namespace) -> None:
    evaluate = COMMANDS[arguments.command].run
    if "device" in arguments:
        with process.joined(arguments.device) as arguments.device:
            drawn = evaluate(arguments)
    else:
        drawn = evaluate(arguments)
    if drawn is not None:
        from fdtrain.training.monitor import show_pictures  # Needs TensorBoard.

        show_pictures(*drawn)
