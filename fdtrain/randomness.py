"""Every random number of a run is a function of (seed, purpose, counters), never of earlier draws.

Philox (Salmon et al. 2011) is a counter-based generator: its key here is (seed, purpose), its counter the
current step, lane or image. Resuming therefore needs no generator state, only these numbers.
On an accelerator the draws come from that device's own generator, seeded in the same way: they are the same
for every run on that kind of device, but differ from the CPU's.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from fdtrain.errors import UserError

SEEDS = 2**63
"""There are so many, from zero."""


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of every run's definition: append, never reorder."""

    SHARDS = 0  # (epoch)
    WINDOW = 1  # (epoch, lane, window)
    FLIP = 2  # (step, lane)
    STRATA = 3  # (step): the permutation of strata and the lattice's shift
    TIME = 4  # (step, lane)
    DEQUANTISE = 5  # (step, lane)
    NOISE = 6  # (step, lane)
    DROPOUT = 7  # (step, rank)
    INIT = 8  # ()
    SAMPLE = 9  # (image, solver step)
    EVALUATE = 10  # (image, draw)
    SPLIT = 11  # ()
    MIXTURE = 12  # (0, data set) its seed; (1, lane, block) its places
    LABEL = 13  # (step, lane)
    ROLLBACK = 14  # (rollbacks to a checkpoint): the seed of the draws after it
    FEATURES = 15  # (0) a feature network's initial weights, (1, epoch) its images; (2, subset) of the kernel distance
    INTERVAL = 16  # (step): where the interval of Soft Truncation begins


def stream(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """The generator of one purpose at up to three counters, on the CPU."""
    counter = [0, *counters, *[0] * (3 - len(counters))]
    # A list of a large and a small number would become floats, in which neighbouring seeds are the same.
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def check_seed(seed: int, name: str, count: int = 1) -> None:
    """Raise UserError unless this seed, and as many as are used after it, are there; ``name`` is the option's."""
    if not 0 <= seed <= SEEDS - count:
        raise UserError(f"{name} must be from 0 to {SEEDS - count}.")


def _device_generator(device: torch.device, seed: int, purpose: Purpose, counters: tuple[int, ...]) -> torch.Generator:
    return torch.Generator(device).manual_seed(torch_seed(seed, purpose, *counters))


def torch_seed(seed: int, purpose: Purpose, *counters: int) -> int:
    """A 63-bit seed for torch's own generators."""
    return int(stream(seed, purpose, *counters).bit_generator.random_raw()) >> 1


def normal(shape: tuple[int, ...], device: torch.device, seed: int, purpose: Purpose, *counters: int) -> Tensor:
    """Standard normal float32 tensor of ``shape`` on ``device``."""
    if device.type == "cpu":
        return torch.from_numpy(stream(seed, purpose, *counters).standard_normal(shape, dtype=np.float32))
    return torch.randn(shape, device=device, generator=_device_generator(device, seed, purpose, counters))


def uniform(shape: tuple[int, ...], device: torch.device, seed: int, purpose: Purpose, *counters: int) -> Tensor:
    """Uniform float32 tensor on [0, 1) of ``shape`` on ``device``."""
    if device.type == "cpu":
        return torch.from_numpy(stream(seed, purpose, *counters).random(shape, dtype=np.float32))
    return torch.rand(shape, device=device, generator=_device_generator(device, seed, purpose, counters))
