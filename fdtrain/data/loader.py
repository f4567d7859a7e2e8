"""Batches of one rank, in the order of the lanes (docs/data.md)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fdtrain.data.lanes import LaneOrder
from fdtrain.data.shards import ShardReader
from fdtrain.errors import UserError
from fdtrain.randomness import Purpose, stream

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)`` uint8 and labels ``(n,)`` int64, lane after lane."""


class LaneDataset(Dataset):
    """A map from the step to the batch of some lanes at that step: the same for any worker that asks.

    Args:
        reader: of the split.
        order: of the run.
        lanes: those to read, in order.
        lane_images: images of one lane in one step.
        flip: mirror each image with probability one half, by the seed of (step, lane).
        labelled: refuse samples without a label.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: LaneOrder,
        lanes: Sequence[int],
        lane_images: int,
        flip: bool = False,
        labelled: bool = False,
    ):
        self.reader, self.order, self.lanes = reader, order, lanes
        self.lane_images, self.flip, self.labelled = lane_images, flip, labelled

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            parts = [self._lane(step, lane) for lane in self.lanes]
        except UserError as error:
            # As a value: raised in a worker process it would arrive wrapped in that worker's trace.
            return error
        return torch.from_numpy(np.concatenate([p[0] for p in parts])), torch.from_numpy(
            np.concatenate([p[1] for p in parts])
        )

    def _lane(self, step: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
        n = self.lane_images
        samples = [self.reader.read(*row) for row in self.order.samples(lane, step * n, (step + 1) * n).tolist()]
        images, labels = np.stack([s[0] for s in samples]), np.array([s[1] for s in samples], dtype=np.int64)
        if self.labelled and (labels < 0).any():
            raise UserError("network.class_conditional is on, but the data set has samples without a label (.cls).")
        if self.flip:
            mirrored = stream(self.order.seed, Purpose.FLIP, step, lane).random(n) < 0.5
            images[mirrored] = images[mirrored, :, :, ::-1]
        return images, labels


def batches(dataset: LaneDataset, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps ``start <= k < stop``, read ahead by ``workers`` processes (0: in this one).

    Raises:
        UserError: from the iterator, when a sample cannot be used.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item
