"""A pass that does not fit the device's memory, told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fdtrain import distributed
from fdtrain.config import Config
from fdtrain.errors import UserError

REFUSAL = re.compile(r"(?:can't|unable to|tried to) allocate|not enough memory|out of memory", re.IGNORECASE)
"""What torch's and NumPy's allocators say; torch's for the CPU in a plain RuntimeError."""
AMOUNT = re.compile(r"allocate ([\d.]+ ?[KMGTP]iB|\d+ bytes)")


@contextmanager
def fits(config: Config) -> Iterator[None]:
    """Around the training of a run: an allocation that fails raises a UserError with what would take less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not REFUSAL.search(str(error)):
            raise
        raise UserError(_message(config, str(error))) from error


def _message(config: Config, said: str) -> str:
    training, world_size = config.training, distributed.world_size()
    images = training.global_batch // world_size // training.accumulation(world_size)
    ways = []
    if images > training.lane_images:
        ways.append(f"set training.micro_batch to a multiple of {training.lane_images} below {images}")
    elif images > 1:
        ways.append("raise training.lanes, which allows a smaller training.micro_batch")
    if not config.network.checkpointing:
        ways.append("set network.checkpointing to true")
    stage = training.stage(world_size)
    if stage < 2 and world_size > 1:
        ways.append(f"raise training.zero_stage above {stage}")
    ways.append("choose a smaller network")
    device = distributed.device()
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    amount = AMOUNT.search(said)
    more = f", which was asked for {_readable(amount[1])} more" if amount else ""
    return f"a pass of {images} images does not fit the memory of {place}{more}; {', or '.join(ways)}."


def _readable(amount: str) -> str:
    return f"{int(amount.split()[0]) / 2**30:.1f} GiB" if amount.endswith("bytes") else amount
