"""Every random number of a run is a function of (seed, purpose, counters), never of earlier draws.

Philox (Salmon et al. 2011) is a counter-based generator: its key here is (seed, purpose), its counter the
current step, lane or image. Resuming therefore needs no generator state, only these numbers.
All is drawn on the host and copied to the device that needs it, so a run is the same on any.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

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
    # A list of a large and a small number would become floats, in which neighbouring seeds are the same.
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=_counter(counters)))


def _counter(counters: tuple[int, ...]) -> list[int]:
    return [0, *counters, *[0] * (3 - len(counters))]


def streams(seed: int, purpose: Purpose, counters: Iterable[tuple[int, ...]]) -> Iterator[np.random.Generator]:
    """:func:`stream` at each of the ``counters``: one generator set anew, an eighth of the time of making one."""
    own = stream(seed, purpose)
    state: Any = own.bit_generator.state
    for each in counters:
        state["state"]["counter"][:] = _counter(each)
        own.bit_generator.state = state
        yield own


def check_seed(seed: int, name: str, count: int = 1) -> None:
    """Raise UserError unless this seed, and as many as are used after it, are there; ``name`` is the option's."""
    if not 0 <= seed <= SEEDS - count:
        raise UserError(f"{name} must be from 0 to {SEEDS - count}.")


def torch_seed(seed: int, purpose: Purpose, *counters: int) -> int:
    """A 63-bit seed for torch's own generators."""
    return int(stream(seed, purpose, *counters).bit_generator.random_raw()) >> 1


def normal(
    shape: tuple[int, ...], device: torch.device, seed: int, purpose: Purpose, counters: Sequence[tuple[int, ...]]
) -> Tensor:
    """Standard normal float32 tensors of ``shape``, one for each of the ``counters``: ``(n, *shape)`` on ``device``."""
    # From pinned memory the copy is made while the host goes on.
    drawn = torch.empty(len(counters), *shape, pin_memory=device.type == "cuda")
    for own, out in zip(streams(seed, purpose, counters), drawn.numpy(), strict=True):
        own.standard_normal(dtype=np.float32, out=out)
    return drawn.to(device, non_blocking=True)
