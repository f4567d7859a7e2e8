"""Finished samples in the forms that others read: a sheet, a folder of PNG files, a .npz, a packed data set.

Beside them lies what they are samples of, with the SHA-256 of their pixels: ``samples.json`` in a folder,
``NAME.npz.json`` beside a file. A sheet is for looking at, and is drawn again each time.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain import distributed, files, lock
from fdtrain.data.pack import pack
from fdtrain.data.sources.picture import exactly
from fdtrain.data.sources.source import Part, Sample, Source
from fdtrain.distributed import chunks
from fdtrain.errors import UserError
from fdtrain.evaluation import image_sets, pictures, result
from fdtrain.evaluation.samples import to_pixels
from fdtrain.evaluation.stored_rows import RowStore
from fdtrain.networks.model import ModelSpec
from fdtrain.partial import differences

SPLIT = "samples"
Labels = Callable[[range], list[int] | None]
"""Classes of the images with the given numbers, of a class-conditional model."""


@dataclass(frozen=True)
class Output:
    """Where samples go, as one of :data:`WRITERS`, and the request for them, which defines every pixel."""

    path: Path
    form: str
    request: dict[str, Any]

    @property
    def is_folder(self) -> bool:
        return self.form in ("png", "shards")

    @property
    def record(self) -> Path:
        """What the samples are, written last."""
        return self.path / "samples.json" if self.is_folder else self.path.with_name(f"{self.path.name}.json")

    @cached_property
    def parts(self) -> RowStore:
        """The images that are finished, levels ``(n, C, H, W)`` uint8, in the folder of what is not."""
        work = self.path / ".sampling" if self.is_folder else self.path.with_name(f".{self.path.name}.sampling")
        return RowStore(work, self.request, self.request["images"])

    def complete(self) -> bool:
        """Whether what is asked for is there already, in full. Raises UserError: something else is, or what is there
        was changed."""
        if self.form == "sheet":
            return False
        work = self.parts.folder
        if self.record.is_file():
            record = image_sets.metadata(self.record)
            if different := differences(record, self.request):
                raise UserError(
                    f"{self.path} holds samples of {'; '.join(different)}. Choose another --out, or remove it."
                )
            there = image_sets.open_samples(self.path)
            pixels = digest(map(there.batch, chunks(range(there.count), 1000)))
            if there.count != self.request["images"] or pixels != record.get("pixels_sha256"):
                raise UserError(f"{self.path} was changed since it was written. Remove it to have it made again.")
            # What a kill while it was removed has left.
            shutil.rmtree(work, ignore_errors=True)
            return True
        if different := self.parts.differences():
            raise UserError(
                f"{self.path}: unfinished samples of {'; '.join(different)}. Repeat that, remove {work}, "
                "or choose another --out."
            )
        others = [p for p in self.path.iterdir() if p != work] if self.path.is_dir() else []
        if not work.is_dir() and (others if self.is_folder else self.path.exists()):
            raise UserError(f"{self.path} holds something else already. Choose another --out.")
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder of the parts, held by rank 0 against other launches until the samples are finished."""
        if distributed.rank() != 0:
            yield
            return
        self.parts.folder.mkdir(parents=True, exist_ok=True)
        with lock.held(self.parts.folder):
            self.parts.prepare()
            yield

    def write(self, spec: ModelSpec, labels: Labels, metadata: dict) -> None:
        """Write the finished form of all parts, then its record, and remove the parts.

        Args:
            metadata: what the record says besides the request.

        Raises:
            OSError: it cannot be written; nothing is lost.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = self.request | metadata
        WRITERS[self.form](self.path, self.parts, spec, labels, record)
        if self.form != "sheet":
            sum_ = digest(to_pixels(levels, spec.levels) for _, levels in self.parts.load_all())
            result.write({**record, "pixels_sha256": sum_}, self.record)
        shutil.rmtree(self.parts.folder, ignore_errors=True)


def digest(batches: Iterable[Tensor]) -> str:
    """SHA-256 of images ``(n, C, H, W)`` uint8 in order."""
    total = hashlib.sha256()
    for batch in batches:
        total.update(batch.contiguous().numpy().data)
    return total.hexdigest()


def _sheet(path: Path, parts: RowStore, spec: ModelSpec, labels: Labels, record: dict) -> None:
    shown = to_pixels(torch.cat([levels for _, levels in parts.load_all()]), spec.levels)
    about = {key: value for key, value in record.items() if key != "model"}
    files.write_atomically(path, lambda temporary: pictures.save_png(pictures.sheet(shown), temporary, about))


def _pictures(path: Path, parts: RowStore, spec: ModelSpec, labels: Labels, record: dict) -> None:
    path.mkdir(exist_ok=True)
    for part, levels in parts.load_all():
        for i, image in zip(part, to_pixels(levels, spec.levels)):
            # The record's checksum tells whether all are there; to flush each one would take longer than to write it.
            write_to = partial(pictures.save_png, image)
            files.write_atomically(path / f"{i:06d}.png", write_to, durable=False)


def _npz(path: Path, parts: RowStore, spec: ModelSpec, labels: Labels, record: dict) -> None:
    """``arr_0``: images ``(n, H, W, C)`` uint8; ``arr_1``: their classes, where there are any."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (parts.count, spec.size, spec.size, spec.channels)}

    def write_to(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for _, levels in parts.load_all():
                    file.write(to_pixels(levels, spec.levels).permute(0, 2, 3, 1).contiguous().numpy().data)
            if classes := labels(range(parts.count)):
                with archive.open("arr_1.npy", "w") as file:
                    np.lib.format.write_array(file, np.array(classes, dtype=np.int64))

    files.write_atomically(path, write_to)


def _shards(path: Path, parts: RowStore, spec: ModelSpec, labels: Labels, record: dict) -> None:
    asked = parts.request
    source = Source(
        name=f"{spec.dataset}-samples",
        source=f"fdtrain: {asked['solver']}, {asked['nfe']} evaluations, seed {asked['seed']}",
        fit=exactly(spec.size, spec.channels),
        classes=spec.classes,
        splits={SPLIT: [Part(json.dumps(asked), parts.count, partial(_read, parts, labels))]},
        levels=spec.levels,
    )
    pack(source, path)


def _read(parts: RowStore, labels: Labels) -> Callable[[int], Sample]:
    """Reads in order."""
    stream = (
        (image, label, f"sample {number}")
        for part, levels in parts.load_all()
        for number, image, label in zip(part, levels.permute(0, 2, 3, 1).numpy(), labels(part) or [-1] * len(part))
    )
    return lambda index: next(stream)


WRITERS = {"sheet": _sheet, "npz": _npz, "png": _pictures, "shards": _shards}
