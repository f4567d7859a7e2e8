"""The device of a tool's process, alone or under a launcher."""

import torch

from fdtrain import distributed
from fdtrain.errors import UserError

PATIENCE = 7 * 24 * 3600.0
"""Seconds. Sampling and evaluation have no beat: a process that is done may wait for hours for the others."""

AGAIN = "The same command goes on where it was."


def join(asked: str | None) -> torch.device:
    """This process's device, once it has joined the others where there are any.

    Raises:
        UserError: a device was asked for that cannot be had.
    """
    if distributed.world_size() > 1:
        if asked is not None:
            raise UserError("--device: under a launcher each process takes its own device. Leave it out.")
        return distributed.connect(PATIENCE)
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {asked}: {str(error).splitlines()[0]}.") from error
    return device


def wait_for_all(device: torch.device) -> None:
    """Return when every process of the launch has come here."""
    distributed.all_reduce_sum(torch.zeros(1, device=device))
