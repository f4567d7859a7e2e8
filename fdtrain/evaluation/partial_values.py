"""Values of many images: shared among the processes, and stored on the disk as they are finished.

A long evaluation that is interrupted continues when the same command is given again, on any number of processes.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdtrain import distributed
from fdtrain.evaluation import process
from fdtrain.evaluation.row_store import RowStore, discard, folder_for

EVERY = 20.0
"""Seconds of work that an interruption may cost."""

logger = logging.getLogger(__name__)


def over_images(
    count: int,
    chunk: int,
    columns: int,
    compute: Callable[[range], Tensor],
    folder: Path | None,
    device: torch.device,
    name: str,
) -> Tensor:
    """``compute`` over ``range(count)``: ``(count, columns)`` float64, on every rank's CPU.

    The images are computed in chunks that do not depend on the number of processes, so neither do the values.

    Args:
        compute: values ``(len(images), columns)`` of some images.
        folder: where finished parts are stored (:func:`fdtrain.evaluation.row_store.folder_for`); None: nowhere.
        name: title of the progress bar.

    Raises:
        UserError: the folder cannot be written.
    """
    store = RowStore(folder, {"count": count, "columns": columns}, count) if folder else None
    whole, missing = _continue(store, count, chunk, columns, name)
    mine = [missing[i] for i in distributed.share(len(missing))]
    shared = f" on 1 of {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    quiet = distributed.rank() != 0 or not sys.stderr.isatty()
    with (
        _Buffer(store) as buffer,
        tqdm(total=sum(map(len, mine)), unit="image", desc=name + shared, disable=quiet) as bar,
    ):
        for images in mine:
            values = compute(images)
            whole[images.start : images.stop] = values
            buffer.add(images, values)
            bar.update(len(images))
    if distributed.world_size() == 1:
        return whole
    return distributed.all_reduce_sum(whole.to(device)).cpu()


def _continue(store: RowStore | None, count: int, chunk: int, columns: int, name: str) -> tuple[Tensor, list[range]]:
    """The values that are already stored, on rank 0 (zero elsewhere), and the chunks that all ranks have to compute."""
    whole = torch.zeros(count, columns, dtype=torch.float64)
    missing = [range(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    if store and distributed.rank() == 0:
        store.prepare()
        for images, values in store.load():
            whole[images.start : images.stop] = values
        missing = store.missing(chunk)
        if done := count - sum(map(len, missing)):
            logger.info("%s: %d of %d images were already computed", name, done, count)
    return whole, distributed.broadcast(missing)


class StoredValues:
    """The values that one command computes, each kind stored beside its results until all is done.

    Args:
        results: the folder of the results; None: nothing is stored.
    """

    def __init__(self, results: Path | None, device: torch.device):
        self.results, self.device = results, device
        self._folders: list[Path | None] = []

    def over_images(
        self,
        name: str,
        count: int,
        chunk: int,
        columns: int,
        compute: Callable[[range], Tensor],
        request: dict[str, Any],
    ) -> Tensor:
        """As :func:`over_images`; ``request`` is all that the values depend on, the same on every process."""
        process.check_same(request)
        self._folders.append(folder_for(self.results, request))
        return over_images(count, chunk, columns, compute, self._folders[-1], self.device, name)

    def discard(self) -> None:
        """Delete what was stored, once the results are written."""
        for folder in self._folders:
            discard(folder)


class _Buffer:
    """Values of this rank that are written together, as consecutive images or after some seconds."""

    def __init__(self, store: RowStore | None):
        self.store, self.last = store, time.monotonic()
        self.images, self.values = range(0), []

    def __enter__(self) -> "_Buffer":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, images: range, values: Tensor) -> None:
        if self.store is None:
            return
        if images.start != self.images.stop:
            self.flush()
        self.images = range(self.images.start if self.values else images.start, images.stop)
        self.values.append(values.double())
        if time.monotonic() - self.last > EVERY:
            self.flush()

    def flush(self) -> None:
        if self.store and self.values:
            self.store.save(self.images, torch.cat(self.values))
        self.values, self.last = [], time.monotonic()
