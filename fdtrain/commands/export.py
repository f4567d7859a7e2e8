"""Export a run's averaged weights: ``fdtrain export runs/digits export/digits``.

Writes model.safetensors and config.json, which ``fdtrain.load("export/digits")`` reads.
"""

import argparse

from fdtrain.evaluation.load import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("folder", help="where the two files go")


def run(arguments: argparse.Namespace) -> None:
    print(f"exported to {export(arguments.model, arguments.folder)}")
