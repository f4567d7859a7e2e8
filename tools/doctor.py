"""``fdtrain doctor`` from a checkout."""

import sys

import interpreter  # noqa: F401

from fdtrain.commands.entry import run

if __name__ == "__main__":
    sys.exit(run("doctor"))
