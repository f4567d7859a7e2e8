"""Rows of a tensor as the finished parts of interruptible work, shared among the processes (docs/evaluation.md).

A part is the rows ``FIRST`` to ``STOP``, in a file ``FIRST-STOP-CHECKSUM.npy``. The same command computes what is
missing, on any number of processes.
"""

import hashlib
import io
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fdtrain import distributed
from fdtrain.errors import UserError
from fdtrain.evaluation import process
from fdtrain.partial import PartialStore

FOLDER = ".partial"
"""Of a folder of results: the folders of its unfinished parts, one for each request."""
EVERY = 20.0
"""Seconds of work that an interruption may cost."""
Rows = tuple[range, Tensor]

logger = logging.getLogger(__name__)


class RowStore(PartialStore[Rows]):
    """The finished rows of ``count`` in ``folder``, and the ``request`` that they belong to."""

    PART = re.compile(r"(\d{8,})-(\d{8,})-([0-9a-f]{16})\.npy")

    def __init__(self, folder: Path, request: dict[str, Any], count: int):
        super().__init__(folder, request, folder / "request.json")
        self.count = count

    def read(self, name: str) -> Rows | None:
        """None if the content does not have the checksum and the length of its name."""
        part = _rows(name)
        try:
            data = (self.folder / name).read_bytes()
            if name != _name(part, data):
                return None
            rows = torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None
        return (part, rows) if len(rows) == len(part) and part.stop <= self.count else None

    def finished(self) -> list[range]:
        """The rows of each part, in order."""
        return [_rows(name) for name in self.names()]

    def missing(self, batch: int) -> list[range]:
        """Chunks of at most ``batch`` rows that have yet to be computed.

        A chunk does not cross a multiple of ``batch``, so work that was begun with one batch size continues with
        another.
        """
        done = set[int]().union(*self.finished())
        runs = (groupby(chunk, done.__contains__) for chunk in distributed.chunks(range(self.count), batch))
        missing = ([*rows] for run in runs for there, rows in run if not there)
        return [range(rows[0], rows[-1] + 1) for rows in missing]

    def save(self, part: range, rows: Tensor) -> None:
        """Write the rows ``(len(part), ...)`` of a part."""
        content = io.BytesIO()
        np.save(content, rows.numpy(), allow_pickle=False)
        self.commit(self.folder / _name(part, content.getvalue()), content.getvalue())

    def load_all(self) -> Iterator[Rows]:
        """:meth:`load` of all rows. UserError if some are missing, because processes write into different folders."""
        end = 0
        for part, rows in self.load():
            if part.start != end:
                break
            yield part, rows
            end = part.stop
        if end != self.count:
            raise UserError(
                f"{self.folder} lacks image {end}. Every node must see the same folder: choose a shared one."
            )


def _name(part: range, data: bytes) -> str:
    return f"{part.start:08d}-{part.stop:08d}-{hashlib.sha256(data).hexdigest()[:16]}.npy"


def _rows(name: str) -> range:
    first, stop, _ = name.split("-")
    return range(int(first), int(stop))


class StoredValues:
    """What one command computes of images, stored beside its results until all is done.

    Args:
        results: the folder of the results; None: nothing is stored.
        settings: what all values depend on, the same on every process.
    """

    def __init__(self, results: Path | None, device: torch.device, settings: dict[str, Any]):
        self.results, self.device, self.settings = results, device, settings
        self._folders: list[Path] = []

    def over_images(
        self, name: str, compute: Callable[[range], Tensor], count: int, columns: int, chunk: int, **request: Any
    ) -> Tensor:
        """``compute`` over ``range(count)``: ``(count, columns)`` float64, on every rank's CPU.

        The images are computed in chunks that do not depend on the number of processes, so neither do the values.

        Args:
            name: of the values, and title of the progress bar.
            compute: values ``(len(images), columns)`` of some images.
            request: what the values depend on besides settings and name.

        Raises:
            UserError: the folder cannot be written, or another process has another request.
        """
        request = {**self.settings, "images": count, "values": name, **request}
        process.check_same(request)
        store, chunk = None, max(1, chunk)
        if self.results:
            digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
            self._folders.append(self.results / FOLDER / digest)
            store = RowStore(self._folders[-1], {"count": count, "columns": columns}, count)
        whole = torch.zeros(count, columns, dtype=torch.float64)
        missing = distributed.chunks(range(count), chunk)
        if store and distributed.rank() == 0:
            store.prepare()
            for images, values in store.load():
                whole[images.start : images.stop] = values
            missing = store.missing(chunk)
            if done := count - sum(map(len, missing)):
                logger.info("%s: %d of %d images were already computed", name, done, count)
        missing = distributed.broadcast(missing)
        mine = [missing[i] for i in distributed.share(len(missing))]
        with bar(sum(map(len, mine)), name) as shown:
            _fill(whole, mine, compute, store, shown)
        return distributed.all_reduce_sum(whole.to(self.device)).cpu()

    def discard(self) -> None:
        """Delete what was stored, once the results are written."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.parent.is_dir() and not any(folder.parent.iterdir()):
                folder.parent.rmdir()


def bar(images: int, name: str | None) -> tqdm:
    """The progress of this rank over so many images, which rank 0 shows of its own on a terminal, if it has a name."""
    shared = f" on 1 of {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    hidden = name is None or distributed.rank() != 0 or not sys.stderr.isatty()
    return tqdm(total=images, unit="image", desc=f"{name}{shared}", disable=hidden)


def _fill(
    whole: Tensor, mine: list[range], compute: Callable[[range], Tensor], store: RowStore | None, shown: tqdm
) -> None:
    """This rank's chunks; consecutive ones are stored together, after some seconds and at the end."""
    pending, last = range(0), time.monotonic()

    def save() -> None:
        if store and pending:
            store.save(pending, whole[pending.start : pending.stop])

    try:
        for images in mine:
            values = compute(images)
            if images.start != pending.stop:
                save()
                pending = images[:0]
            whole[images.start : images.stop] = values
            pending = range(pending.start, images.stop)
            if time.monotonic() - last > EVERY:
                save()
                pending, last = range(images.stop, images.stop), time.monotonic()
            shown.update(len(images))
    finally:
        save()
