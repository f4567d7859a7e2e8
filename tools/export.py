"""Export a run's averaged weights: ``python tools/export.py runs/digits export/digits``.

Writes model.safetensors and config.json. To load them back:

    from fdtrain.evaluation.load import load_model
    model = load_model("export/digits")  # model.spec describes it
    F = model(x, t)  # images (B, C, H, W) in [-1, 1], times (B,) in [0, 1], float64
"""

import argparse
import sys

import interpreter  # noqa: F401

from fdtrain.errors import exit_code
from fdtrain.evaluation.load import export
from fdtrain.version import ShowVersion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("folder", help="where the two files go")
    arguments = parser.parse_args()
    print(f"exported to {export(arguments.model, arguments.folder)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
