"""``fdtrain COMMAND``, and the scripts in tools/: parse the arguments and run a command."""

import argparse
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from fdtrain.console import phase
from fdtrain.errors import exit_code
from fdtrain.main import importing
from fdtrain.version import ShowVersion

COMMANDS = {
    "configs": "the configurations that come with fdtrain",
    "pack": "pack a data set, as it was published, into shards",
    "plan": "what a configuration will take: memory, work, time",
    "train": "train a model, on one process or on many",
    "evaluate": "bits/dim, FID, curves, and the report of a run",
    "compare": "variants and seeds, trained and evaluated alike, in one table",
    "sample": "draw images from a trained model",
    "export": "write a trained model in a form that others read",
    "convert": "a published checkpoint of another program as an export",
    "doctor": "what this machine and this installation can do",
}
"""By name, the line that ``fdtrain --help`` shows. The command is the module of its name in this folder."""

DESCRIPTION = """Train diffusion models by maximum likelihood on the closed time interval [0, 1].

    fdtrain pack digits data/digits
    fdtrain train --config digits
    fdtrain evaluate nll runs/digits --data data/digits
    fdtrain sample runs/digits --out samples.png
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry of ``fdtrain``. Returns the exit code."""
    given = _given(arguments)
    if given and given[0] in COMMANDS:
        return run(given[0], given[1:], prog=f"fdtrain {given[0]}")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "fdtrain", description=DESCRIPTION, epilog="fdtrain COMMAND --help describes a command.", formatter_class=style
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what)
    parser.parse_args(given)
    return 0


def run(name: str, arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run a command with the given arguments, or the process's. Returns the exit code."""
    return exit_code(lambda: _run(name, _given(arguments), prog))


def _given(arguments: list[str] | None) -> list[str]:
    """Without what DeepSpeed's launcher puts before them; the environment says the same."""
    given = sys.argv[1:] if arguments is None else arguments
    return given[1:] if given and given[0].startswith("--local_rank=") else given


def _run(name: str, arguments: list[str], prog: str | None) -> None:
    # Where somebody waits for it.
    with phase(f"loading fdtrain {name}") if sys.stderr.isatty() else nullcontext():
        command, parsed = parse(name, arguments, prog)
        # Training does so in the processes of the run.
        if name != "train" and getattr(parsed, "allow_code", None):
            import_module("fdtrain.plugins").execute(parsed.allow_code)
    try:
        command.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        if name == "train":
            raise
        # Whoever read the output has seen enough: fdtrain configs | head.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(name: str, arguments: list[str], prog: str | None = None) -> tuple[Any, argparse.Namespace]:
    """The module of a command, and the arguments that are given to it. Raises SystemExit: they cannot be parsed."""
    # Imported now: the others may need packages that are not installed.
    with importing():
        command = import_module(f"fdtrain.commands.{name}")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog, description=command.__doc__, formatter_class=style)
    if name != "train":  # Which has it from main.py.
        parser.add_argument("--version", action=ShowVersion)
    parser.set_defaults(given=arguments)
    command.add_arguments(parser)
    return command, parser.parse_args(arguments)
