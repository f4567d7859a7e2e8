"""Train a model: ``fdtrain train --config configs/digits.yaml``.

    fdtrain train --config X                      one process
    fdtrain train --config X --processes 8        eight on this machine, through DeepSpeed's launcher
    deepspeed --hostfile hosts --module fdtrain.main --config X        every GPU of every host
    torchrun --nproc-per-node 8 -m fdtrain train --config X            any launcher that sets RANK and WORLD_SIZE

Interrupted, ``deepspeed --hostfile`` ends every DeepSpeed job of this Python on those hosts; torchrun does not.
A run that was stopped continues with ``--resume auto`` (docs/clusters.md).
"""

import argparse
import os
import socket
import sys
from importlib.util import find_spec

from fdtrain import main
from fdtrain.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    main.add_arguments(parser)
    parser.add_argument("--processes", type=int, metavar="N", help="launch N processes on this machine")


def run(arguments: argparse.Namespace) -> None:
    if arguments.processes is None:
        main.train(arguments)
        return
    if arguments.processes < 1:
        raise UserError("--processes must be at least 1.")
    if "RANK" in os.environ:
        raise UserError("--processes: this is a process of a launch already. Leave it out.")
    if find_spec("deepspeed") is None:
        raise ModuleNotFoundError("no DeepSpeed", name="deepspeed")
    command = launcher(arguments.processes, arguments.given)
    # In this process's place, so that signals reach the launcher.
    os.execv(command[0], command)


def launcher(processes: int, given: list[str]) -> list[str]:
    """DeepSpeed's launcher with the arguments that the training command was given."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--processes")
    rest = own.parse_known_args(given)[1]
    with socket.socket() as own_port:
        # Several runs may train on one machine.
        own_port.bind(("127.0.0.1", 0))
        port = own_port.getsockname()[1]
    options = ["--num_accelerators", str(processes), "--master_port", str(port), "--module", "fdtrain.main"]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *options, *rest]
