"""A pass that does not fit the device's memory, told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fdtrain import distributed
from fdtrain.capacity.layout import RunLayout
from fdtrain.config import Config
from fdtrain.errors import UserError

REFUSAL = re.compile(r"(?:can't|unable to|tried to) allocate|not enough memory|out of memory", re.IGNORECASE)
"""What torch's and NumPy's allocators say; torch's for the CPU in a plain RuntimeError."""
AMOUNT = re.compile(r"allocate ([\d.]+ ?[KMGTP]iB|\d+ bytes)")


@contextmanager
def training_memory(config: Config, layout: RunLayout) -> Iterator[None]:
    """Around the training of a run: an allocation that fails raises a UserError with what would take less."""
    with _explained(f"a pass of {layout.micro_batch} images", _less_training(config, layout)):
        yield


@contextmanager
def evaluation_memory(images: int) -> Iterator[None]:
    """The same around an evaluation while training, of no more than so many images at a time."""
    ways = [
        "set monitor.evaluate_every, monitor.sample_every and monitor.frechet_every to null and evaluate afterwards"
    ]
    if images > 1:
        ways.insert(0, "lower training.micro_batch, than which it takes no more images at a time")
    with _explained(f"an evaluation beside the training, in float32 and of up to {images} images at a time,", ways):
        yield


@contextmanager
def _explained(what: str, ways: list[str]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not REFUSAL.search(str(error)):
            raise
        raise UserError(_message(what, ways, str(error))) from error


def _less_training(config: Config, layout: RunLayout) -> list[str]:
    images, ways = layout.micro_batch, []
    if images > layout.lane_images:
        multiple = f"to a multiple of {layout.lane_images} " if layout.lane_images > 1 else ""
        ways.append(f"set training.micro_batch {multiple}below {images}")
    elif images > 1:
        ways.append("raise training.lanes, which allows a smaller training.micro_batch")
    if not config.network.checkpointing:
        ways.append("set network.checkpointing to true")
    if layout.zero_stage < 2 and layout.world_size > 1:
        ways.append(f"raise training.zero_stage above {layout.zero_stage}")
    return [*ways, "choose a smaller network"]


def _message(what: str, ways: list[str], said: str) -> str:
    device = distributed.device()
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    amount = AMOUNT.search(said)
    more = f", which was asked for {_readable(amount[1])} more" if amount else ""
    return f"{what} does not fit the memory of {place}{more}; {', or '.join(ways)}."


def _readable(amount: str) -> str:
    return f"{int(amount.split()[0]) / 2**30:.1f} GiB" if amount.endswith("bytes") else amount
