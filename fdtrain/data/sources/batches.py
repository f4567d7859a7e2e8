"""Batch files of CIFAR and of downsampled ImageNet, arrays of flat images as pickles or npz."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from fdtrain.data import npy
from fdtrain.data.sources import pickled
from fdtrain.data.sources.archive import MAX_STREAM, Member, stream
from fdtrain.data.sources.source import Sample
from fdtrain.errors import UserError


@dataclass(frozen=True)
class BatchFile:
    """One file with ``data``, rows of 3 size^2 uint8 (red plane, green plane, blue plane), and labels under ``key``.

    ``first_label`` is the number of the first class in the source: 0 for CIFAR, 1 for ImageNet.
    """

    member: Member
    size: int
    first_label: int
    classes: int
    key: str = "labels"

    def count(self) -> int:
        return len(self._load()[0])

    def open(self) -> Callable[[int], Sample]:
        data, labels = self._load()
        planes = data.reshape(-1, 3, self.size, self.size)
        return lambda index: (planes[index].transpose(1, 2, 0), int(labels[index]))

    def identity(self) -> str:
        return repr((self.member.name, self.member.size, self.size, self.first_label, self.classes))

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        """Data ``(n, 3 size^2)`` uint8 and labels ``(n,)`` from 0."""
        where = str(self.member)
        with stream(self.member) as file:
            if self.member.name.endswith(".npz"):
                content = _npz(file, where)
            else:
                content = pickled.arrays(pickled.load(file, where), where)
        data, labels = content.get("data"), content.get(self.key)
        if not isinstance(data, np.ndarray) or labels is None:
            raise UserError(f"{where} has no 'data' and '{self.key}'. Is it the published file?")
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * self.size**2:
            raise UserError(
                f"{where}: data of shape {data.shape} and type {data.dtype}, expected rows of "
                f"{3 * self.size**2} uint8 ({self.size}x{self.size}). Is it the published file of this size?"
            )
        return data, self._labels(labels, len(data), where)

    def _labels(self, labels: Any, images: int, where: str) -> np.ndarray:
        # Checked before the conversion to an array: a small pickle of nested lists can stand for an endless one.
        if isinstance(labels, np.ndarray):
            integers = labels.ndim == 1 and labels.dtype.kind in "iu"
        else:
            integers = isinstance(labels, list) and all(type(label) is int and 0 <= label < 1 << 31 for label in labels)
        if not integers or len(labels) != images:
            raise UserError(f"{where}: labels that are not {images} whole numbers. Is it the published file?")
        labels = np.asarray(labels, dtype=np.int64) - self.first_label
        if images and not 0 <= labels.min() <= labels.max() < self.classes:
            raise UserError(
                f"{where}: labels {labels.min() + self.first_label} to {labels.max() + self.first_label}, expected "
                f"{self.first_label} to {self.first_label + self.classes - 1}. Is it the published file?"
            )
        return labels


def _npz(file: IO[bytes], where: str) -> dict[str, np.ndarray]:
    """``data`` and ``labels`` of an npz."""
    try:
        with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if (largest := max((info.file_size for info in found.values()), default=0)) > MAX_STREAM:
                raise ValueError(f"an array of {largest} bytes")
            return {key: npy.array(archive.read(found[key])) for key in ("data", "labels") if key in found}
    except Exception as error:  # Damaged or hostile, it fails in many ways.
        raise UserError(f"{where} is not an npz of plain arrays ({error}). Fetch it again.") from error
