"""A pass that does not fit the device's memory, told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fdtrain import distributed
from fdtrain.errors import UserError

REFUSAL = re.compile(r"(?:can't|unable to|tried to) allocate|not enough memory|out of memory", re.IGNORECASE)
"""What torch's and NumPy's allocators say; torch's for the CPU in a plain RuntimeError."""
AMOUNT = re.compile(r"allocate ([\d.]+ ?[KMGTP]iB|\d+ bytes)")
TRAINING = (
    "lower training.micro_batch (raise training.lanes if they do not allow it), set network.checkpointing to true, "
    "raise training.zero_stage if there are several processes, or choose a smaller network"
)
EVALUATION = (
    "lower training.micro_batch, than which it takes no more images at a time, or set monitor.evaluate_every, "
    "monitor.sample_every and monitor.frechet_every to null and evaluate afterwards"
)


@contextmanager
def fitting(what: str, ways: str) -> Iterator[None]:
    """Around what may not fit: an allocation that fails raises a UserError with the ``ways`` to need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not REFUSAL.search(str(error)):
            raise
        device, amount = distributed.device(), AMOUNT.search(str(error))
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
        more = f", which was asked for {amount[1]} more" if amount else ""
        raise UserError(f"{what} does not fit the memory of {place}{more}; {ways}.") from error
