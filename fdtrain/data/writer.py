"""Shards: which images each one holds, and writing it so that it is there in full or not at all."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from fdtrain.data.dataset import Shard
from fdtrain.data.processes import stopped
from fdtrain.data.sources.source import Part, Sample, even
from fdtrain.errors import UserError

WORK = ".packing"
"""Folder beside the shards for what is not finished, and for the records of what is."""

ENCODINGS = ("npy", "png")


class Cut(NamedTuple):
    """One shard to be: its file, the number of its first image in the split, and its images in the part."""

    file: str
    first: int
    images: range


class Form(NamedTuple):
    """What every sample must be like, and how it is written."""

    shape: tuple[int, int, int]
    classes: int
    encoding: str


def layout(split: str, counts: list[int], shard_images: int) -> list[list[Cut]]:
    """The shards of a split, part by part, numbered throughout."""
    cuts, shards, first = [], 0, 0
    for count in counts:
        ranges = even(count, shard_images)
        cuts.append(
            [Cut(f"{split}-{shards + i:06d}.tar", first + images.start, images) for i, images in enumerate(ranges)]
        )
        shards, first = shards + len(ranges), first + count
    return cuts


def finished(folder: Path, cut: Cut) -> Shard | None:
    """The record of a shard that is there in full; it is written after the shard was renamed into place."""
    try:
        shard = Shard.model_validate_json((folder / WORK / f"{cut.file}.json").read_bytes())
        there = (folder / cut.file).stat().st_size == shard.bytes
    except (FileNotFoundError, ValidationError):
        return None
    return shard if there else None


def write_part(part: Part, cuts: list[Cut], folder: Path, form: Form) -> None:
    """Write some of the shards of a part."""
    read = part.open()
    for cut in cuts:
        if stopped():
            return
        _write_shard(read, cut, folder, form)


def _write_shard(read: Callable[[int], Sample], cut: Cut, folder: Path, form: Form) -> None:
    """Write aside, rename, record. Times and owners are fixed: the same samples give the same bytes."""
    # A process that outlives its killed parent by a moment must not write into the same file.
    aside = folder / WORK / f"{cut.file}.{os.getpid()}"
    try:
        with aside.open("w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, index in enumerate(cut.images, cut.first):
                    image, label = read(index)
                    _check(image, label, form, f"image {number} of {cut.file}")
                    if label >= 0:
                        _add(tar, f"{number:08d}.cls", str(label).encode())
                    _add(tar, f"{number:08d}.{form.encoding}", encode(image, form.encoding))
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(aside, folder / cut.file)
        shard = Shard(file=cut.file, images=len(cut.images), bytes=size, sha256=digest)
        write_text(folder / WORK / f"{cut.file}.json", shard.model_dump_json())
    except OSError as error:
        raise UserError(
            f"{folder / cut.file} cannot be written ({error}). Mend that, and the same command goes on."
        ) from error


def _check(image: np.ndarray, label: int, form: Form, where: str) -> None:
    if image.shape != form.shape or image.dtype != np.uint8:
        raise ValueError(f"{where}: {image.dtype} of shape {image.shape}, the source says {form.shape}")
    if label >= form.classes:
        raise UserError(f"{where} has label {label}, but the source has {form.classes} classes. Correct the source.")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o444
    info.uname = info.gname = "bigdata"  # As webdataset's own writer has it.
    tar.addfile(info, io.BytesIO(data))


def encode(image: np.ndarray, encoding: str) -> bytes:
    """``(H, W, C)`` uint8 to the bytes of a .npy or .png file."""
    file = io.BytesIO()
    if encoding == "npy":
        np.save(file, np.ascontiguousarray(image), allow_pickle=False)
    else:
        Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)).save(file, "PNG")
    return file.getvalue()


def write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text + "\n")
    os.replace(aside, path)
