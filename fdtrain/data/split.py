"""A whole split in its stored order, for evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fdtrain.data.cache import Cache, open_cache
from fdtrain.data.mixture import DataSets, open_data
from fdtrain.data.shards import ShardReader
from fdtrain.errors import UserError

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images ``(n, C, H, W)`` uint8 and labels ``(n,)`` int64, -1 for none."""


class Images(Protocol):
    """Images by number, such as those of a :class:`Split`."""

    def batch(self, images: range) -> Batch: ...


FETCH_SECONDS = 600.0
"""How long to try to fetch one remote shard, unless a cache is given."""


class Split:
    """The images of one split by number. Several data sets follow one another.

    ``data`` is the path of a packed data set, or opened ones. Remote shards are fetched to ``cache`` (None: a temporary
    folder). Raises UserError: no such folder or split, or a shard is not as described."""

    def __init__(self, data: str | Path | DataSets, split: str, cache: Cache | None = None):
        self.name = split
        data = data if isinstance(data, DataSets) else open_data([data])
        self.description = data.description
        shards = data.split(split)
        cache = cache or open_cache(None, None, FETCH_SECONDS, bool(shards.remote_lengths.size))
        self._reader = ShardReader(shards, self.description, cache, keep_open=1)
        self._ends = np.cumsum(shards.images)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, images: Sequence[int]) -> Batch:
        """Images ``(n, C, H, W)`` uint8 and labels ``(n,)``. Raises UserError: a sample is broken. A measurement covers
        the whole split."""
        pixels, labels, broken = self._reader.read([self._place(i) for i in images])
        if broken:
            raise UserError(f"{next(iter(broken.values()))}. Repair it or pack the data set again.")
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    def _place(self, image: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, image, side="right"))
        return shard, image - (int(self._ends[shard - 1]) if shard else 0)
