"""Samples under way: finished batches on disk, so that sampling goes on where it was stopped.

A part is a file ``FIRST-STOP.npy`` of levels ``(n, C, H, W)`` uint8, written aside and renamed. ``request.json`` beside
them says what they are samples of. Every process of a launch reads and writes the same folder.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain.errors import UserError

REQUEST = "request.json"


class PartialSamples:
    """The parts of ``request["images"]`` images in ``folder``."""

    def __init__(self, folder: Path, request: dict[str, Any]):
        self.folder, self.request, self.images = folder, request, request["images"]

    def differences(self) -> list[str]:
        """What the parts in the folder, if there are any, are of that was not asked for."""
        try:
            begun = json.loads((self.folder / REQUEST).read_text())
        except FileNotFoundError:
            return []
        except ValueError:
            return [f"a broken {REQUEST}"]
        return differences(begun, self.request)

    def begin(self) -> None:
        """Make the folder, without parts of anything else. One process of a launch calls it."""
        if self.differences():
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{REQUEST}"
        aside.write_text(json.dumps(self.request, indent=1) + "\n")
        os.replace(aside, self.folder / REQUEST)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against other launches. The system lets go of it however this process ends."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise UserError(f"{self.folder} is being written by another launch. Wait for it, or stop it.") from None
        finally:
            os.close(handle)

    def stored(self) -> list[range]:
        """The images of each part, in order."""
        found = []
        for name in os.listdir(self.folder):
            first, dash, stop = name.removesuffix(".npy").partition("-")
            if dash and name.endswith(".npy") and first.isdigit() and stop.isdigit():
                found.append(range(int(first), int(stop)))
        return sorted(found, key=lambda part: part.start)

    def missing(self, batch: int) -> list[range]:
        """Chunks of at most ``batch`` images that are still to be sampled.

        A chunk does not cross a multiple of ``batch``: what was sampled with one batch size goes on with another.
        """
        there = np.zeros(self.images, dtype=bool)
        for part in self.stored():
            there[part.start : part.stop] = True
        chunks = []
        for start in range(0, self.images, batch):
            part = there[start : start + batch]
            # Where a run of missing images begins, and where it ends.
            edges = np.flatnonzero(np.diff(np.concatenate([[True], part, [True]]).astype(np.int8)))
            chunks += [range(start + a, start + b) for a, b in edges.reshape(-1, 2).tolist()]
        return chunks

    def save(self, part: range, levels: Tensor) -> None:
        name = f"{part.start:08d}-{part.stop:08d}.npy"
        aside = self.folder / f".{name}"
        with aside.open("wb") as file:
            np.save(file, levels.numpy(), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.folder / name)

    def load(self) -> Iterator[tuple[range, Tensor]]:
        """All images in order, part by part.

        Raises:
            UserError: one is missing: not all processes write into the same folder.
        """
        end = 0
        for part in self.stored():
            if part.start != end:
                break
            levels = np.load(self.folder / f"{part.start:08d}-{part.stop:08d}.npy", allow_pickle=False)
            yield part, torch.from_numpy(levels)
            end = part.stop
        if end != self.images:
            raise UserError(
                f"{self.folder} lacks image {end}. Every node must see the same folder: choose a shared one."
            )

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def differences(found: Any, asked: dict[str, Any]) -> list[str]:
    """What of a request differs, for a message."""
    if not isinstance(found, dict):
        return ["no request"]
    return [f"{key} {found.get(key)}, not {value}" for key, value in asked.items() if found.get(key) != value]
