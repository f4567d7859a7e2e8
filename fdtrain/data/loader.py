"""Batches of one rank, in the order of the lanes (docs/data.md)."""

import logging
import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fdtrain import distributed
from fdtrain.data.cache import Cache
from fdtrain.data.fetch import is_remote
from fdtrain.data.lanes import LaneOrder
from fdtrain.data.mixture import MixtureOrder
from fdtrain.data.shards import ShardReader
from fdtrain.data.workers import ignore_all_but_parent, signals_blocked
from fdtrain.errors import UserError
from fdtrain.randomness import Purpose, streams

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch", covariant=True)

PREFETCH_STEPS = 4
"""The steps that a worker reads ahead."""
START_SECONDS = 20.0
"""A reading process that has not begun by then is replaced, as often as :data:`STARTS` allow."""
STARTS = 5
MAX_REPORTED = 10
"""The broken samples that a rank reports one by one; further ones are only counted."""


class Steps(Protocol[Batch]):
    """Makes the batch of any step, the same in any process."""

    images: int
    """Of a batch."""
    epoch: float
    """Images of this rank's part of an epoch."""
    nbytes: int
    """Of a batch in memory."""

    def read(self, step: int, out: np.ndarray) -> list[str]:
        """Make the batch of a step in ``out``, ``(nbytes,)`` uint8. Returns a message for each broken sample, which
        another stands in for. Raises UserError: the batch is impossible."""
        ...

    def views(self, memory: Tensor) -> Batch:
        """The batch in memory that :meth:`read` has filled."""
        ...


class LaneDataset:
    """The images and labels of some lanes at any step.

    ``views`` are images ``(n, C, H, W)`` uint8 and labels ``(n,)`` int64, lane after lane. A broken sample is replaced
    by the next sound one of its lane.

    Args:
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
        self.images, self.epoch = len(lanes) * lane_images, order.images * len(lanes) / order.lanes
        self.nbytes = self.images * (8 + reader.description.dims)
        # The position of the lanes up to which shards are requested.
        self._requested = 0

    def views(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        labels, images = memory[: 8 * self.images], memory[8 * self.images :]
        return images.view(self.images, *self.reader.description.shape), labels.view(torch.int64)

    def read(self, step: int, out: np.ndarray) -> list[str]:
        images, labels = (view.numpy() for view in self.views(torch.from_numpy(out)))
        n = self.lane_images
        if self.reader.cache:
            self._fetch_ahead(self.reader.cache, step * n)
        rows = np.concatenate([self.order.samples(lane, step * n, (step + 1) * n) for lane in self.lanes])
        _, labels[:], broken = self.reader.read(rows.tolist(), images)
        for place, problem in broken.items():
            lane, position = self.lanes[place // n], step * n + place % n
            images[place], labels[place] = self._substitute(lane, position, problem)
        if self.labelled and (labels < 0).any():
            raise UserError("network.class_conditional is on, but the data set has samples without a label (.cls).")
        if self.flip:
            counters = [(step, lane) for lane in self.lanes]
            for i, draws in enumerate(streams(self.order.seed, Purpose.FLIP, counters)):
                own = images[i * n : (i + 1) * n]
                mirrored = draws.random(n) < 0.5
                own[mirrored] = own[mirrored, :, :, ::-1]
        return list(broken.values())

    def _substitute(self, lane: int, position: int, problem: str) -> tuple[np.ndarray, int]:
        """The next sound sample of the lane: a function of the data alone, so the same on any rank and again."""
        for row in self.order.samples(lane, position + 1, position + 1 + self.order.window).tolist():
            images, labels, broken = self.reader.read([row])
            if not broken:
                return images[0], labels[0]
        raise UserError(
            f"{problem}; nor is any of the {self.order.window} after it sound. Repair the shard or pack it again."
        )

    def _fetch_ahead(self, cache: Cache, position: int) -> None:
        """Request the shards of every lane's next two windows, once a window."""
        if position < self._requested:
            return
        reach = self.order.window + self.lane_images
        for begin in (position, position + reach):
            rows = np.concatenate([self.order.samples(lane, begin, begin + reach) for lane in self.lanes])
            placed = (self.reader.shards[shard] for shard in dict.fromkeys(rows[:, 0].tolist()))
            cache.request((each.shard, each.place) for each in placed if is_remote(each.place))
        self._requested = position + reach


class SharedSlots(Dataset, Generic[Batch]):
    """Batches in memory that forked workers share with this process, one slot for each step ahead.

    Sending a tensor to another process costs a millisecond of handshakes, and an array two copies through a pipe in
    pieces of 64 KiB; here only the number of the step is sent. The loader gives a worker another step before a batch is
    taken from its slot, hence one slot more than there are steps ahead.
    """

    def __init__(self, steps: Steps[Batch], ahead: int):
        self.steps = steps
        self._error: UserError | None = None
        # Slots begin where any kind of number may.
        slots, stride = ahead + 1, -(-steps.nbytes // 64) * 64
        # Anonymous: /dev/shm may be small, as it is in a container.
        self._slots = np.frombuffer(mmap.mmap(-1, slots * stride), np.uint8).reshape(slots, stride)[:, : steps.nbytes]

    def slot(self, step: int) -> np.ndarray:
        return self._slots[step % len(self._slots)]

    def __getitem__(self, step: int) -> tuple[int, list[str] | UserError]:
        # An error ends the run: later steps that are read ahead must not each wait for a deadline first.
        if self._error is None:
            try:
                return step, self.steps.read(step, self.slot(step))
            except UserError as error:
                self._error = error
        # As a value: raised in a worker process it would arrive wrapped in that worker's trace.
        return step, self._error

    def batch(self, step: int) -> Batch:
        """A copy of a step's batch, since the slot is used again; pinned where there is an accelerator, which then
        copies it while the host goes on."""
        memory = torch.empty(self.steps.nbytes, dtype=torch.uint8, pin_memory=distributed.on_gpu())
        return self.steps.views(memory.copy_(torch.from_numpy(self.slot(step))))


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


def _begun(loader: DataLoader) -> Iterator:
    """The loader's iterator, once all its processes run.

    Python 3.11 may fork one while another thread, as one of gloo's that returns a tensor, has the interpreter's list of
    threads locked: it then waits for ever, before its first line (github.com/python/cpython/issues/112275). Raises
    UserError: they do not begin."""
    if not loader.num_workers:
        return iter(loader)
    begun = np.frombuffer(mmap.mmap(-1, loader.num_workers), np.uint8)
    loader.worker_init_fn = partial(_begin, begun)
    for _ in range(STARTS):
        begun[:] = 0
        items, deadline = iter(loader), time.monotonic() + START_SECONDS
        while not begun.all() and time.monotonic() < deadline:
            time.sleep(0.001)
        if begun.all():
            return items
        processes = getattr(items, "_workers", [])
        # The loader asks them to end, which a stuck one cannot, and forgets them.
        del items
        for process in processes:
            process.kill()
            process.join()
    raise UserError(
        f"the reading processes did not begin in {STARTS} attempts. Set data.workers to 0, or use Python 3.12."
    )


def _begin(begun: np.ndarray, worker: int) -> None:
    ignore_all_but_parent(worker)
    begun[worker] = 1


class Batches(Iterator[Batch]):
    """The batches of steps ``start <= k < stop``, made ahead by ``workers`` processes (0: in this one).

    Broken samples are reported, counted, and tolerated up to ``max_broken_share`` of the images read, or of this rank's
    part of an epoch if fewer are read yet. The iterator raises UserError: a shard cannot be used, or too many samples
    are broken."""

    def __init__(self, steps: Steps[Batch], start: int, stop: int, workers: int, max_broken_share: float = 0.0):
        self.max_broken_share, self._steps = max_broken_share, steps
        self.images = self.broken = self.broken_now = 0
        self._slots = SharedSlots(steps, PREFETCH_STEPS * workers)
        loader = DataLoader(
            self._slots,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=PREFETCH_STEPS if workers else None,
            multiprocessing_context="fork" if workers else None,
            # Torch's own turns arrays into tensors.
            collate_fn=lambda item: item,
        )
        with signals_blocked():
            self._items: Iterator = _begun(loader)

    def __next__(self) -> Batch:
        step, problems = next(self._items)
        try:
            if isinstance(problems, UserError):
                raise problems
            self.images += self._steps.images
            self.broken_now = len(problems)
            for problem in problems:
                self._count_broken(problem)
            return self._slots.batch(step)
        except UserError:
            # This ends the workers now: the error's trace would keep them alive until the next garbage collection.
            self._items = iter(())
            raise

    def _count_broken(self, problem: str) -> None:
        self.broken += 1
        if self.broken > self.max_broken_share * max(self.images, self._steps.epoch):
            count = f" ({self.broken} of {self.images} images read are broken)" if self.broken > 1 else ""
            raise UserError(
                f"{problem}{count}. Repair it or pack the data set again, or raise data.max_broken_share "
                f"({self.max_broken_share:g}) to skip such samples."
            )
        if self.broken <= MAX_REPORTED:
            more = "; further ones are only counted" if self.broken == MAX_REPORTED else ""
            logger.warning("skipping a broken sample: %s%s", problem, more)
