"""A whole split in the order it is stored in, for evaluation."""

from pathlib import Path

import numpy as np
import torch

from fdtrain.data.dataset import check_split, read_description
from fdtrain.data.loader import Batch
from fdtrain.data.shards import ShardReader


class Split:
    """Images of one split by their number.

    Raises:
        UserError: no such folder or split, or a shard is not as described.
    """

    def __init__(self, folder: str | Path, split: str):
        self.name = split
        self.description = read_description(folder)
        shards = check_split(folder, self.description, split)
        self._reader = ShardReader(folder, shards, self.description)
        self._ends = np.cumsum([shard.images for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, images: range) -> Batch:
        """Images ``(n, C, H, W)`` uint8 and labels ``(n,)``."""
        samples = [self._reader.read(*self._place(i)) for i in images]
        return torch.from_numpy(np.stack([s[0] for s in samples])), torch.tensor([s[1] for s in samples])

    def _place(self, image: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, image, side="right"))
        return shard, image - (int(self._ends[shard - 1]) if shard else 0)
