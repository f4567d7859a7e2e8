"""Entry of ``deepspeed fdtrain/main.py --config configs/digits.yaml``: parse, build, run."""

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if not __package__:
    # Run as a file, python puts fdtrain/ itself first on the path; its parent is meant.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from fdtrain.console import lose_what_fails
from fdtrain.errors import exit_code
from fdtrain.version import ShowVersion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument(
        "--config",
        required=True,
        nargs="+",
        help="YAML configuration, and what is laid over it; see configs/ and docs/configuration.md",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as training.lr=1e-4 name=x"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto: go on from the newest complete checkpoint of the run's folder, or start if there is none",
    )
    add_allow_code(parser)
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", help="trace these steps into the run's folder profile/, such as 10:13"
    )
    # Given by DeepSpeed's launcher; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """The option of the commands that execute what the user names: entry.py does so, and here :func:`train`."""
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="FILE",
        help="execute this file, in which networks and others of your own are (docs/extending.md); may be repeated",
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fdtrain", description="Train a diffusion model by maximum likelihood.")
    add_arguments(parser)
    return parser.parse_args(arguments)


@contextmanager
def importing() -> Iterator[None]:
    """What is imported is no garbage: it is not searched for any, here or later, nor by reading processes, which would
    copy it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def train(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked at once, then build the run's parts and train."""
    from fdtrain.resilience.launcher import watched
    from fdtrain.resilience.signals import BEFORE_TRAINING, handled, leave_before_training

    # DeepSpeed's; a tool's is its result.
    lose_what_fails("stdout")
    with watched(leave_before_training), handled(leave_before_training, BEFORE_TRAINING):
        with importing():
            from fdtrain.training.plan import prepare

        resume = arguments.resume == "auto"
        plan = prepare(arguments.config, arguments.set, resume, arguments.profile, arguments.allow_code)
        # Imports DeepSpeed, which takes seconds: a mistake in the configuration is told before that.
        with importing():
            from fdtrain.training.build import carry_out

        carry_out(plan)


def main(arguments: list[str] | None = None) -> int:
    parsed = parse_arguments(arguments)
    return exit_code(lambda: train(parsed))


if __name__ == "__main__":
    sys.exit(main())
