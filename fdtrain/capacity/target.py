"""What a run is meant for, as ``--for`` says it: ``cpu``, ``cuda`` or ``cuda:N``."""

import argparse
import re
from typing import NamedTuple


class Target(NamedTuple):
    """So many devices of a kind, "cpu" or "cuda"; a run has a process for each."""

    device: str
    devices: int = 1

    def __str__(self) -> str:
        return self.device if self.devices == 1 else f"{self.device}:{self.devices}"


def target(text: str) -> Target:
    """Read from the command line. Raises ArgumentTypeError: it is neither cpu nor cuda[:N]."""
    found = re.fullmatch(r"(cpu|cuda)|cuda:([1-9][0-9]{0,5})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give cpu, cuda (one GPU), or cuda:N for N of them")
    return Target(found[1] or "cuda", int(found[2] or 1))
