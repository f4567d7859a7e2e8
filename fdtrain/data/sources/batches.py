"""Batch files of CIFAR and of downsampled ImageNet, arrays of flat images as pickles or npz."""

import io
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fdtrain.data.decode import array
from fdtrain.data.sources import pickled
from fdtrain.data.sources.archive import MAX_STREAM, Member, members, stream
from fdtrain.data.sources.source import Part, Sample
from fdtrain.errors import UserError


class BatchFormat(NamedTuple):
    """What a file holds: ``data``, rows of 3 size^2 uint8 (red, green, blue plane), and labels under ``key``.

    ``first_label`` is the number of the first class in the source: 0 for CIFAR, 1 for ImageNet.
    """

    size: int
    first_label: int
    classes: int
    key: str = "labels"


def batch_files(paths: Sequence[Path], names: Sequence[str], advice: str) -> dict[str, Member]:
    """The files of these names, or with ``.npz`` behind, in archives or folders. Raises UserError: one is missing, or
    there twice."""
    found: dict[str, Member] = {}
    for path in paths:
        for member in members(path):
            name = PurePosixPath(member.name).name.removesuffix(".npz")
            if name in found and name in names:
                raise UserError(f"{member} and {found[name]} are the same batch. Give each batch once.")
            found[name] = member
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{', '.join(map(str, paths))}: no {', '.join(missing)}. {advice}")
    return {name: found[name] for name in names}


def batch_part(member: Member, batch: BatchFormat) -> Part:
    """The images of one file, which has to be read for their number."""
    identity = repr((member.name, member.size, *batch[:3]))
    return Part(identity, partial(_count, member, batch), partial(_open, member, batch))


def _count(member: Member, batch: BatchFormat) -> int:
    return len(_load(member, batch)[0])


def _open(member: Member, batch: BatchFormat) -> Callable[[int], Sample]:
    data, labels = _load(member, batch)
    planes, name = data.reshape(-1, 3, batch.size, batch.size), str(member)
    return lambda index: (planes[index], int(labels[index]), f"{name}, image {index}")


def _load(member: Member, batch: BatchFormat) -> tuple[np.ndarray, np.ndarray]:
    """Data ``(n, 3 size^2)`` uint8 and labels ``(n,)`` from 0."""
    where, size = str(member), batch.size
    content = _npz(member) if member.name.endswith(".npz") else pickled.load(member)
    data, labels = content.get("data"), content.get(batch.key)
    if not isinstance(data, np.ndarray) or labels is None:
        raise UserError(f"{where} has no 'data' and '{batch.key}'. Is it the published file?")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * size**2:
        raise UserError(
            f"{where}: data of shape {data.shape} and type {data.dtype}, expected rows of {3 * size**2} uint8 "
            f"({size}x{size}). Is it the published file of this size?"
        )
    return data, _labels(labels, len(data), batch, where)


def _labels(labels: Any, images: int, batch: BatchFormat, where: str) -> np.ndarray:
    # Checked before the conversion to an array: a small pickle of nested lists can stand for an endless one.
    if isinstance(labels, np.ndarray):
        integers = labels.ndim == 1 and labels.dtype.kind in "iu"
    else:
        integers = isinstance(labels, list) and all(type(label) is int and 0 <= label < 1 << 31 for label in labels)
    first, end = batch.first_label, batch.first_label + batch.classes
    if not integers or len(labels) != images or (images and not first <= min(labels) <= max(labels) < end):
        raise UserError(
            f"{where}: labels that are not {images} whole numbers from {first} to {end - 1}. Is it the published file?"
        )
    return np.asarray(labels, dtype=np.int64) - first


def _npz(member: Member) -> dict[str, np.ndarray]:
    """``data`` and ``labels`` of an npz."""
    try:
        with stream(member) as file, zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if (largest := max((info.file_size for info in found.values()), default=0)) > MAX_STREAM:
                raise ValueError(f"an array of {largest} bytes")
            return {key: array(archive.read(found[key])) for key in ("data", "labels") if key in found}
    except Exception as error:  # Damaged or hostile, it fails in many ways.
        raise UserError(f"{member} is not an npz of plain arrays ({error}). Fetch it again.") from error
