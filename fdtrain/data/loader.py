"""Batches of one rank, in the order of the lanes (docs/data.md)."""

import logging
import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fdtrain import distributed
from fdtrain.data.lanes import LaneOrder
from fdtrain.data.mixture import MixtureOrder
from fdtrain.data.prefetch import Prefetcher
from fdtrain.data.shards import ShardReader
from fdtrain.data.workers import ignore_all_but_parent, signals_blocked
from fdtrain.errors import UserError
from fdtrain.randomness import Purpose, stream

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)`` uint8 and labels ``(n,)`` int64, lane after lane."""

PREFETCH_STEPS = 4
"""The steps that a worker reads ahead."""
MAX_REPORTED = 10
"""The broken samples that a rank reports one by one; further ones are only counted."""


class LaneDataset(Dataset):
    """A map from the step to the batch of some lanes at that step, the same in any worker process.

    An item is the batch with a message for each broken sample, which the next sound sample of its lane replaces;
    or the error that makes the batch impossible.

    Args:
        reader: reads the shards of the split.
        order: the order of the samples in every lane.
        lanes: the lanes to read, in order.
        lane_images: the images of one lane in one step.
        flip: mirror each image with probability one half, by the seed of (step, lane).
        labelled: refuse samples without a label.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: LaneOrder | MixtureOrder,
        lanes: Sequence[int],
        lane_images: int,
        flip: bool = False,
        labelled: bool = False,
    ):
        self.reader, self.order, self.lanes = reader, order, lanes
        self.lane_images, self.flip, self.labelled = lane_images, flip, labelled
        self._prefetcher = Prefetcher(reader.cache) if reader.cache else None
        self._error: UserError | None = None
        # By lane, the position up to which its shards are requested.
        self._requested: dict[int, int] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape ``(n, C, H, W)`` of a step's images."""
        return len(self.lanes) * self.lane_images, *self.reader.description.shape

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, list[str]] | UserError:
        return self.read(step)

    def read(self, step: int, out: np.ndarray | None = None) -> tuple[Tensor, Tensor, list[str]] | UserError:
        """The item of a step, with its images in ``out`` if it is given."""
        # An error ends the run: later steps that are read ahead must not each wait for a deadline first.
        if self._error is None:
            try:
                return self._batch(step, out)
            except UserError as error:
                self._error = error
        # As a value: raised in a worker process it would arrive wrapped in that worker's trace.
        return self._error

    def _batch(self, step: int, out: np.ndarray | None) -> tuple[Tensor, Tensor, list[str]]:
        n = self.lane_images
        if self._prefetcher:
            self._prefetch(self._prefetcher, step * n)
        rows = np.concatenate([self.order.samples(lane, step * n, (step + 1) * n) for lane in self.lanes])
        images, labels, broken = self.reader.read(rows.tolist(), out)
        for place, problem in broken.items():
            lane, position = self.lanes[place // n], step * n + place % n
            images[place], labels[place] = self._substitute(lane, position, problem)
        if self.labelled and (labels < 0).any():
            raise UserError("network.class_conditional is on, but the data set has samples without a label (.cls).")
        if self.flip:
            for i, lane in enumerate(self.lanes):
                own = images[i * n : (i + 1) * n]
                mirrored = stream(self.order.seed, Purpose.FLIP, step, lane).random(n) < 0.5
                own[mirrored] = own[mirrored, :, :, ::-1]
        return torch.from_numpy(images), torch.from_numpy(labels), list(broken.values())

    def _substitute(self, lane: int, position: int, problem: str) -> tuple[np.ndarray, int]:
        """The next sound sample of the lane: a function of the data alone, so the same on any rank and again."""
        for row in self.order.samples(lane, position + 1, position + 1 + self.order.window).tolist():
            images, labels, broken = self.reader.read([row])
            if not broken:
                return images[0], labels[0]
        raise UserError(
            f"{problem}; nor is any of the {self.order.window} after it sound. Repair the shard or pack it again."
        )

    def _prefetch(self, prefetcher: Prefetcher, position: int) -> None:
        """Request the shards of every lane's window and of the one after it, once a window."""
        lanes = [lane for lane in self.lanes if self._requested.get(lane, 0) <= position]
        if not lanes:
            return
        reach = self.order.window + self.lane_images
        for begin in (position, position + reach):
            shards = dict.fromkeys(s for lane in lanes for s in self.order.shards(lane, begin, begin + reach))
            prefetcher.request(self.reader.shards[s] for s in shards)
        self._requested |= dict.fromkeys(lanes, position + reach)


class SharedSlots(Dataset):
    """A dataset whose images are in memory that forked workers share with this process, one slot for each step ahead.

    Sending a tensor to another process costs a millisecond of handshakes, and an array two copies through a pipe in
    pieces of 64 KiB; here only the labels are sent. The loader gives a worker another step before a batch is
    taken from its slot, hence one slot more than there are steps ahead.
    """

    def __init__(self, dataset: LaneDataset, ahead: int):
        self.dataset = dataset
        # Anonymous: /dev/shm may be small, as it is in a container.
        memory = mmap.mmap(-1, (ahead + 1) * max(1, math.prod(dataset.shape)))
        self._slots = np.frombuffer(memory, np.uint8)[: (ahead + 1) * math.prod(dataset.shape)]
        self._slots = self._slots.reshape(ahead + 1, *dataset.shape)

    def __getitem__(self, step: int) -> tuple[int, np.ndarray, list[str]] | UserError:
        item = self.dataset.read(step, self._slots[step % len(self._slots)])
        return item if isinstance(item, UserError) else (step, item[1].numpy(), item[2])

    def images(self, step: int) -> np.ndarray:
        """A copy of a step's images, since the slot is used again."""
        return self._slots[step % len(self._slots)].copy()


def _unchanged(item):
    """Replaces torch's conversion, which turns arrays into tensors."""
    return item


@contextmanager
def lost_workers_reported() -> Iterator[None]:
    """Use :class:`Batches` within this context: it turns the death of a reading process into a UserError."""
    try:
        yield
    except RuntimeError as error:
        # torch has no type of its own for it.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"a reading process was lost ({str(error).splitlines()[0].strip().rstrip('.')}), perhaps for memory. "
            "Make room or lower data.workers, and go on with --resume auto."
        ) from None


class Batches(Iterator[Batch]):
    """The batches of steps ``start <= k < stop``, read ahead by ``workers`` processes (0: in this one).

    Broken samples are reported, counted, and tolerated up to a share of the images read, or of this rank's part of
    an epoch if fewer are read yet.

    Args:
        max_broken_share: the tolerated share; 0 tolerates none.

    Raises:
        UserError: from the iterator, when a shard cannot be used or too many samples are broken.
    """

    def __init__(self, dataset: LaneDataset, start: int, stop: int, workers: int, max_broken_share: float = 0.0):
        self.max_broken_share = max_broken_share
        self.images = self.broken = self.broken_now = 0
        order = dataset.order
        self._epoch = order.images * len(dataset.lanes) / order.lanes
        # With an accelerator a thread pins the batches, which works for tensors only.
        pinned = distributed.on_gpu()
        self._shared = SharedSlots(dataset, PREFETCH_STEPS * workers) if workers and not pinned else None
        loader = DataLoader(
            self._shared or dataset,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=PREFETCH_STEPS if workers else None,
            multiprocessing_context="fork" if workers else None,
            pin_memory=pinned,
            worker_init_fn=ignore_all_but_parent,
            collate_fn=_unchanged,
        )
        with signals_blocked():
            self._items = iter(loader)

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in getattr(self._items, "_workers", [])]

    def __next__(self) -> Batch:
        item = next(self._items)
        try:
            if isinstance(item, UserError):
                raise item
            images, labels, problems = item
            if self._shared:
                images, labels = torch.from_numpy(self._shared.images(images)), torch.from_numpy(labels)
            self.images += len(images)
            self.broken_now = len(problems)
            for problem in problems:
                self._count_broken(problem)
            return images, labels
        except UserError:
            # This ends the workers now: the error's trace would keep them alive until the next garbage collection.
            self._items = iter(())
            raise

    def _count_broken(self, problem: str) -> None:
        self.broken += 1
        if self.broken > self.max_broken_share * max(self.images, self._epoch):
            count = f" ({self.broken} of {self.images} images read are broken)" if self.broken > 1 else ""
            raise UserError(
                f"{problem}{count}. Repair it or pack the data set again, or raise data.max_broken_share "
                f"({self.max_broken_share:g}) to skip such samples."
            )
        if self.broken <= MAX_REPORTED:
            more = "; further ones are only counted" if self.broken == MAX_REPORTED else ""
            logger.warning("skipping a broken sample: %s%s", problem, more)
