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

from fdtrain.data.lanes import LaneOrder
from fdtrain.data.mixture import MixtureOrder
from fdtrain.data.prefetch import Prefetcher
from fdtrain.data.processes import heed_parent_alone, unheard
from fdtrain.data.shards import ShardReader
from fdtrain.errors import UserError
from fdtrain.randomness import Purpose, stream

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
"""Images ``(n, C, H, W)`` uint8 and labels ``(n,)`` int64, lane after lane."""

AHEAD = 4
"""Steps that a worker reads ahead."""
SHOWN = 10
"""Broken samples that a rank tells of one by one; the rest are counted."""


class LaneDataset(Dataset):
    """A map from the step to the batch of some lanes at that step: the same for any worker that asks.

    An item is the batch, and what is wrong with each broken sample, in whose place stands the next sound one of
    its lane; or the error that makes it impossible.

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
        # By lane, the position up to which its shards are wanted.
        self._wanted: dict[int, int] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a step's images, ``(n, C, H, W)``."""
        return len(self.lanes) * self.lane_images, *self.reader.description.shape

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, list[str]] | UserError:
        return self.read(step)

    def read(self, step: int, out: np.ndarray | None = None) -> tuple[Tensor, Tensor, list[str]] | UserError:
        """The item of a step, its images in ``out`` if it is given."""
        # An error is the end of the run: steps read ahead of it must not each wait out a deadline first.
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
            self._look_ahead(self._prefetcher, step * n)
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

    def _look_ahead(self, prefetcher: Prefetcher, position: int) -> None:
        """Want the shards of every lane's window and of the one after it, once a window."""
        lanes = [lane for lane in self.lanes if self._wanted.get(lane, 0) <= position]
        if not lanes:
            return
        reach = self.order.window + self.lane_images
        for begin in (position, position + reach):
            wanted = dict.fromkeys(s for lane in lanes for s in self.order.shards(lane, begin, begin + reach))
            prefetcher.want(self.reader.shards[s] for s in wanted)
        self._wanted |= dict.fromkeys(lanes, position + reach)


class SharedSlots(Dataset):
    """A dataset whose images lie in memory that forked workers share with this process, a slot for each step ahead.

    A tensor sent to another process costs a millisecond of handshakes, an array two copies through a pipe in
    pieces of 64 KiB; what is sent here is the labels. The loader gives a worker another step before a batch is
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
        """A copy of a step's images: the slot is used again."""
        return self._slots[step % len(self._slots)].copy()


def _as_it_is(item):
    """In place of torch's conversion, which makes tensors of arrays."""
    return item


@contextmanager
def lost_workers_reported() -> Iterator[None]:
    """Around the use of :class:`Batches`: the death of a reading process, noticed anywhere, is a UserError."""
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

    Broken samples are told of, counted, and borne up to a share of the images read, or of this rank's part of
    an epoch if fewer are read yet.

    Args:
        max_broken_share: the share; 0: none is borne.

    Raises:
        UserError: from the iterator, when a shard cannot be used or too many samples are broken.
    """

    def __init__(self, dataset: LaneDataset, start: int, stop: int, workers: int, max_broken_share: float = 0.0):
        self.max_broken_share = max_broken_share
        self.images = self.broken = self.broken_now = 0
        order = dataset.order
        self._epoch = order.images * len(dataset.lanes) / order.lanes
        # With an accelerator a thread takes the batches in and pins them, which it does to tensors only.
        pinned = torch.cuda.is_available()
        self._shared = SharedSlots(dataset, AHEAD * workers) if workers and not pinned else None
        loader = DataLoader(
            self._shared or dataset,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            multiprocessing_context="fork" if workers else None,
            pin_memory=pinned,
            worker_init_fn=heed_parent_alone,
            collate_fn=_as_it_is,
        )
        with unheard():
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
                self._bear(problem)
            return images, labels
        except UserError:
            # Ends the workers now: the error's trace would keep them until the garbage collector comes by.
            self._items = iter(())
            raise

    def _bear(self, problem: str) -> None:
        self.broken += 1
        if self.broken > self.max_broken_share * max(self.images, self._epoch):
            found = f" ({self.broken} of {self.images} images read are broken)" if self.broken > 1 else ""
            raise UserError(
                f"{problem}{found}. Repair it or pack the data set again, or raise data.max_broken_share "
                f"({self.max_broken_share:g}) to skip such samples."
            )
        if self.broken <= SHOWN:
            more = "; further ones are only counted" if self.broken == SHOWN else ""
            logger.warning("skipping a broken sample: %s%s", problem, more)
