"""Work that can be interrupted and shared: its finished parts on the disk (docs/evaluation.md, docs/sampling.md).

A part is the rows ``FIRST`` to ``STOP`` of one tensor, in a file ``FIRST-STOP-CHECKSUM.npy``. The file ``request.json``
beside the parts says what they are parts of. Every process of a launch writes its own parts; rank 0 prepares the
folder and decides what is missing, so only rank 0 needs to see the parts of a launch that came before.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain import files
from fdtrain.errors import UserError

FOLDER = ".partial"
"""Of a folder of results: the folders of its unfinished parts, one for each request."""
REQUEST = "request.json"
PART = re.compile(r"(\d{8,})-(\d{8,})-([0-9a-f]{16})\.npy")

logger = logging.getLogger(__name__)


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


class PartialStore:
    """The finished parts of ``count`` rows in ``folder``, and the ``request`` that they answer.

    ``request`` is JSON that defines every row: parts of another request are never mixed with these.
    """

    def __init__(self, folder: Path, request: dict[str, Any], count: int):
        self.folder, self.request, self.count = folder, request, count

    def differences(self) -> list[str]:
        """How the request of the parts in the folder, if there are any, differs from this one."""
        try:
            stored = json.loads((self.folder / REQUEST).read_text())
        except FileNotFoundError:
            return []
        except ValueError:
            return [f"a broken {REQUEST}"]
        return differences(stored, self.request)

    def prepare(self) -> None:
        """Make the folder, remove parts of another request, and remove damaged parts with a warning.

        One process of a launch calls it, before any other writes.

        Raises:
            UserError: the folder cannot be written.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.differences():
                for file in self.folder.iterdir():
                    file.unlink()
            files.write_text(self.folder / REQUEST, json.dumps(self.request, indent=1) + "\n")
        for path, part in self._files():
            if self._read(path, part) is None:
                logger.warning("%s is damaged; it is removed and computed again", path)
                path.unlink()

    def finished(self) -> list[range]:
        """The rows of each part, in order."""
        return [part for _, part in self._files()]

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
        """Write the rows ``(len(part), ...)`` of a part.

        Raises:
            UserError: they cannot be written.
        """
        content = io.BytesIO()
        np.save(content, rows.numpy(), allow_pickle=False)
        data = content.getvalue()
        name = f"{part.start:08d}-{part.stop:08d}-{_checksum(data)}.npy"
        with self._writing():
            files.write_atomically(self.folder / name, lambda temporary: temporary.write_bytes(data))

    def load(self) -> Iterator[tuple[range, Tensor]]:
        """The parts that there are, in order, with their rows.

        Raises:
            UserError: a part was damaged since :meth:`prepare`; it is removed.
        """
        for path, part in self._files():
            rows = self._read(path, part)
            if rows is None:
                path.unlink(missing_ok=True)
                raise UserError(f"{path} was damaged and is removed. Repeat the command to compute it again.")
            yield part, rows

    def load_all(self) -> Iterator[tuple[range, Tensor]]:
        """:meth:`load` of all rows without a gap.

        Raises:
            UserError: rows are missing, because not all processes write into the same folder.
        """
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
        """Remove the folder."""
        discard(self.folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot store partial results in {self.folder} ({reason}).") from error

    def _files(self) -> list[tuple[Path, range]]:
        found = ((name, PART.fullmatch(name)) for name in os.listdir(self.folder))
        parts = [(self.folder / name, range(int(match[1]), int(match[2]))) for name, match in found if match]
        return sorted(parts, key=lambda entry: entry[1].start)

    def _read(self, path: Path, part: range) -> Tensor | None:
        """The rows of a part; None if its content does not have the checksum and the length of its name."""
        try:
            data = path.read_bytes()
            if _checksum(data) != path.stem.rpartition("-")[2]:
                return None
            rows = torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None
        return rows if len(rows) == len(part) and part.stop <= self.count else None


def differences(stored: Any, request: dict[str, Any]) -> list[str]:
    """The entries of a request that differ from those stored, for a message."""
    if not isinstance(stored, dict):
        return ["no request"]
    return [f"{key} {stored.get(key)}, not {value}" for key, value in request.items() if stored.get(key) != value]


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
