"""Rows of a tensor as the parts of interruptible work (docs/evaluation.md, docs/sampling.md).

A part is the rows ``FIRST`` to ``STOP``, in a file ``FIRST-STOP-CHECKSUM.npy``.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.partial import PartialStore

FOLDER = ".partial"
"""Of a folder of results: the folders of its unfinished parts, one for each request."""
Rows = tuple[range, Tensor]


def folder_for(results: Path | None, request: dict[str, Any]) -> Path | None:
    """The folder of the parts of a request, named by a hash of it; None without a folder of results."""
    if results is None:
        return None
    text = json.dumps(request, sort_keys=True)
    return results / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]


def discard(folder: Path | None) -> None:
    """Remove the parts once the result is written, and the folder of all parts if these were the last."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.name == FOLDER and folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


class RowStore(PartialStore[Rows]):
    """The finished rows of ``count`` in ``folder``, and the ``request`` that they answer."""

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

    def refused(self, path: Path, reason: object) -> str:
        return f"cannot store partial results in {self.folder} ({reason})."

    def finished(self) -> list[range]:
        """The rows of each part, in order."""
        return [_rows(name) for name in self.names()]

    def missing(self, batch: int) -> list[range]:
        """Chunks of at most ``batch`` rows that have yet to be computed.

        A chunk does not cross a multiple of ``batch``, so work that was begun with one batch size continues with
        another.
        """
        done = np.zeros(self.count, dtype=bool)
        for part in self.finished():
            done[part.start : part.stop] = True
        chunks = []
        for start in range(0, self.count, batch):
            # Where a run of missing rows begins, and where it ends.
            padded = np.concatenate([[True], done[start : start + batch], [True]])
            edges = np.flatnonzero(np.diff(padded.astype(np.int8)))
            chunks += [range(start + a, start + b) for a, b in edges.reshape(-1, 2).tolist()]
        return chunks

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

    def remove(self) -> None:
        discard(self.folder)


def _name(part: range, data: bytes) -> str:
    return f"{part.start:08d}-{part.stop:08d}-{hashlib.sha256(data).hexdigest()[:16]}.npy"


def _rows(name: str) -> range:
    first, stop, _ = name.split("-")
    return range(int(first), int(stop))
