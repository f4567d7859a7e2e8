"""Evaluate a trained model: ``python tools/evaluate.py nll runs/digits --data data/digits``.

Alone, or on every process of a launch: ``deepspeed --num_accelerators 2 tools/evaluate.py nll ...``, or torchrun.
The processes share the images, and the numbers do not depend on how many there are.
"""

import argparse
import sys

import interpreter  # noqa: F401

from fdtrain.errors import exit_code
from fdtrain.evaluation import process
from fdtrain.evaluation.commands import curve, features, fid, grid, nll, report
from fdtrain.training.monitor import show_pictures
from fdtrain.version import ShowVersion

COMMANDS = {"nll": nll, "features": features, "fid": fid, "curve": curve, "grid": grid, "report": report}


def parse_arguments() -> argparse.Namespace:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--version", action=ShowVersion)
    # Given by DeepSpeed's launcher; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        description = command.__doc__ or ""
        command.add_arguments(
            commands.add_parser(name, help=description.splitlines()[0], description=description, formatter_class=style)
        )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    run = COMMANDS[arguments.command].run
    if "device" in arguments:
        with process.joined(arguments.device) as arguments.device:
            drawn = run(arguments)
    else:
        drawn = run(arguments)
    if drawn is not None:
        show_pictures(*drawn)


if __name__ == "__main__":
    sys.exit(exit_code(main))
