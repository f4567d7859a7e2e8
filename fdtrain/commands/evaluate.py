"""Evaluate a trained model: ``fdtrain evaluate nll runs/digits --data data/digits``.

Alone, or on every process of a launch: ``torchrun --nproc-per-node 2 -m fdtrain evaluate nll ...``, or
``deepspeed --num_accelerators 2 --module fdtrain evaluate nll ...``. The processes share the images, and the numbers do
not depend on how many there are.
"""

import argparse
from importlib import import_module

from fdtrain.evaluation import process
from fdtrain.main import add_allow_code

COMMANDS = {
    "nll": "bits/dim of a whole split, by the bound and by the ODE",
    "features": "learn features from a data set's labels, to measure distances by",
    "fid": "Frechet distance of samples to a split, and others",
    "curve": "pictures of quality against evaluations, and of the bound against time",
    "grid": "find the best times of a deterministic solver for a model",
    "ema": "bits/dim and distances of averages of several lengths",
    "report": "one self-contained HTML page of a run",
}
"""By name, the line that ``fdtrain evaluate --help`` shows."""
MODULES = {name: name for name in COMMANDS} | {"features": "label_features"}
"""Of evaluation/: ``add_arguments(parser)``, and ``run(arguments)``, which may return what TensorBoard is to show."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True)
    style = argparse.RawDescriptionHelpFormatter
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, formatter_class=style)
        if name in parser.get_default("given")[:1]:
            chosen = _module(name)
            command.description = chosen.__doc__
            chosen.add_arguments(command)
            add_allow_code(command)


def run(arguments: argparse.Namespace) -> None:
    evaluate = _module(arguments.command).run
    if "device" in arguments:
        with process.process_group(arguments.device) as arguments.device:
            drawn = evaluate(arguments)
    else:
        drawn = evaluate(arguments)
    if drawn is not None:
        from fdtrain.training.board import show_pictures  # Needs TensorBoard.

        show_pictures(*drawn)


def _module(name: str):
    # Imported when it is chosen: the others may need packages that are not installed.
    return import_module(f"fdtrain.evaluation.{MODULES[name]}")
