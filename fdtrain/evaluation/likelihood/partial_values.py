"""Values of many images: shared among the processes, and kept on disk as they are finished.

A long evaluation that is interrupted goes on where it was when the same command is given again, on any number of
processes. What is kept lies in a folder named after a hash of everything that defines the values, so other settings
never meet it. It is removed when the result is written.
"""

import hashlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from fdtrain import distributed
from fdtrain.errors import UserError

FOLDER = ".partial"
EVERY = 20.0
"""Seconds of work that an interruption may cost."""


def folder_for(results: Path | None, settings: dict[str, Any]) -> Path | None:
    """Where values with these settings are kept; None, and nothing is kept, without a folder of results."""
    if results is None:
        return None
    text = json.dumps(settings, sort_keys=True)
    return results / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]


def discard(folder: Path | None) -> None:
    """Remove what is kept, once the result is written; the folder above too, if it was the last."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


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
        folder: where finished chunks are kept; None: nowhere.
        name: of the progress bar.

    Raises:
        UserError: the folder cannot be written.
    """
    chunks = [range(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    whole = torch.zeros(count, columns, dtype=torch.float64)
    done = torch.zeros(count, dtype=torch.bool)
    if distributed.rank() == 0:
        _read(folder, whole, done)
    done = distributed.broadcast(done)
    left = [images for images in chunks if not done[images.start : images.stop].all()]
    mine = left[distributed.rank() :: distributed.world_size()]
    if distributed.rank() == 0 and len(left) < len(chunks):
        print(f"{name}: {int(done.sum())} of {count} images were already computed", file=sys.stderr)
    for images in left:
        # A chunk that is half there is computed again, maybe elsewhere: its values must not be added twice.
        whole[images.start : images.stop] = 0
    writer = _Writer(folder)
    shared = f" on 1 of {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    bar = tqdm(
        total=sum(map(len, mine)),
        unit="image",
        desc=name + shared,
        disable=distributed.rank() != 0 or not sys.stderr.isatty(),
    )
    try:
        for images in mine:
            values = compute(images)
            whole[images.start : images.stop] = values
            writer.add(images, values)
            bar.update(len(images))
    finally:
        bar.close()
        writer.flush()
    if distributed.world_size() == 1:
        return whole
    return distributed.all_reduce_sum(whole.to(device)).cpu()


def _read(folder: Path | None, whole: Tensor, done: Tensor) -> None:
    """Fill in what is kept; a file that cannot be read, or does not fit, is computed again."""
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        try:
            part = load_file(path)
            images, values = part["images"], part["values"]
            if values.shape[1:] == whole.shape[1:] and torch.isfinite(values).all():
                whole[images], done[images] = values, True
        except (OSError, SafetensorError, KeyError, IndexError, RuntimeError):
            continue


class _Writer:
    """Finished chunks of this rank, written aside and renamed every few seconds."""

    def __init__(self, folder: Path | None):
        self.folder, self.images, self.values, self.last = folder, [], [], time.monotonic()

    def add(self, images: range, values: Tensor) -> None:
        if self.folder is not None:
            self.images.append(torch.tensor(images))
            self.values.append(values.contiguous())
            if time.monotonic() - self.last > EVERY:
                self.flush()

    def flush(self) -> None:
        if not self.images:
            return
        name = uuid.uuid4().hex
        aside = self.folder / f".{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"images": torch.cat(self.images), "values": torch.cat(self.values)}, aside)
            aside.rename(self.folder / f"{name}.safetensors")
        except OSError as error:
            raise UserError(f"cannot keep partial results in {self.folder} ({error.strerror}).") from error
        self.images, self.values, self.last = [], [], time.monotonic()
