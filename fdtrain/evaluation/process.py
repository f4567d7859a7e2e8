"""The device of a tool's process, alone or under a launcher."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fdtrain import distributed
from fdtrain.errors import UserError
from fdtrain.partial import differences
from fdtrain.resilience import heartbeat, launcher
from fdtrain.resilience.verdict import Limits

LIMITS = Limits(heartbeat=60.0, collective=7 * 24 * 3600.0, joining=distributed.PATIENCE)
"""Sampling and evaluation have no common step: a process that has finished may wait for hours for the others. But all
begin together."""

AGAIN = "The same command goes on where it was."


@contextmanager
def process_group(name: str | None) -> Iterator[torch.device]:
    """Around the work of a tool: this process's device, once it has joined the others where there are any.

    Args:
        name: the device that the user asked for, as torch names it; None: a GPU where there is one.

    Raises:
        UserError: that device is not available.
        LostPeer: the first process has not come.
    """
    if distributed.world_size() == 1:
        yield open_device(name or ("cuda" if distributed.on_gpu() else "cpu"))
        return
    if name is not None:
        raise UserError("--device: under a launcher each process takes its own device. Leave it out.")
    with launcher.watched(launcher.end), heartbeat.process_group(LIMITS, AGAIN) as (device, _):
        yield device


def open_device(name: str | torch.device, option: str = "--device") -> torch.device:
    """The device of that name; ``option`` names in the message what chose it. Raises UserError: it is not available."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{option} {name}: {str(error).splitlines()[0]}.") from error
    return device


def check_same(request: dict[str, Any]) -> None:
    """Check that every process computes the same: one could have opened other weights, images or features.
    Raises UserError: on every process, if another has a different request than the first."""
    first, *others = distributed.of_all(request)
    for rank, other in enumerate(others, 1):
        if different := differences(other, first):
            raise UserError(
                f"process {rank} has other files than process 0: {'; '.join(different)}. Nodes that share the work "
                f"must see the same files. {AGAIN}"
            )
