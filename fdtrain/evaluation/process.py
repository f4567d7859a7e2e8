"""The device of a tool's process, alone or under a launcher."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fdtrain import distributed
from fdtrain.errors import UserError
from fdtrain.resilience import heartbeat, launcher

HEARTBEAT = 60.0
"""Seconds without a sign of life after which a process is given up."""
PATIENCE = 7 * 24 * 3600.0
"""Seconds. Sampling and evaluation have no common step: a process that is done may wait for hours for the others."""

AGAIN = "The same command goes on where it was."


@contextmanager
def joined(asked: str | None) -> Iterator[torch.device]:
    """Around the work of a tool: this process's device, once it has joined the others where there are any.

    Raises:
        UserError: a device was asked for that cannot be had.
        LostPeer: another process is lost.
    """
    if distributed.world_size() == 1:
        yield _device(asked)
        return
    if asked is not None:
        raise UserError("--device: under a launcher each process takes its own device. Leave it out.")
    with launcher.followed(launcher.end), heartbeat.joined(HEARTBEAT, PATIENCE, AGAIN) as (device, _):
        yield device


def _device(asked: str | None) -> torch.device:
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {asked}: {str(error).splitlines()[0]}.") from error
    return device


def wait_for_all(device: torch.device) -> None:
    """Return when every process of the launch has come here."""
    distributed.all_reduce_sum(torch.zeros(1, device=device))
