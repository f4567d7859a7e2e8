"""Arrays in files of numpy, read without numpy's loader, which allocates what a header claims and may unpickle."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from fdtrain.data.decode import npy_header
from fdtrain.data.sources.archive import MAX_READ, Member, members, stream
from fdtrain.errors import UserError

LONGEST_HEADER = 1 << 14
LARGEST = 1 << 44
"""The most bytes of an array that is read image by image."""
PIECE = 1 << 20


def header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype, bytes]:
    """Shape, type, and the bytes that were read after the header, of a ``.npy`` file of so many bytes.

    Raises:
        ValueError: not a plain array in C order that fills the file exactly.
    """
    head = io.BytesIO(file.read(LONGEST_HEADER))
    shape, fortran, dtype = npy_header(head)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize + head.tell() != size:
        raise ValueError(f"{dtype} of shape {shape} in {size} bytes")
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype, head.read()


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which nothing but the header has been read."""

    member: Member
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return str(self.member)

    def load(self) -> np.ndarray:
        """All of a small array.

        Raises:
            UserError: it is large, or damaged.
        """
        if self.member.size > MAX_READ:
            raise UserError(f"{self} has {self.member.size} bytes, too many for labels. Is it the right array?")
        return next(replace(self, shape=(1, *self.shape)).entries(range(1)))

    def entries(self, stretch: range) -> Iterator[np.ndarray]:
        """A range along the first dimension, one by one. The end of the array is read with its last entry, so that
        the checksum of an archive is verified before that entry is given.

        Raises:
            UserError: the file is damaged, ends early, or has changed.
        """
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        start = self.member.size - math.prod(self.shape) * self.dtype.itemsize + stretch.start * each
        with stream(self.member, LARGEST) as file:
            if self.member.kind == "file":
                file.seek(start)
            else:
                for a, b in pairwise([*range(0, start, PIECE), start]):
                    file.read(b - a)
            for index in stretch:
                data = file.read(each)
                if len(data) != each or (index + 1 == self.shape[0] and file.read(1)):
                    raise UserError(f"{self} does not have the {self.shape[0]} entries of its header. Fetch it again.")
                yield np.frombuffer(data, self.dtype).reshape(self.shape[1:])


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a ``.npz`` file by name, or that of a ``.npy`` file, named after it.

    Raises:
        UserError: no such file, or arrays that are not plain.
    """
    if path.suffix == ".npy":
        if not path.is_file():
            raise UserError(f"no file {path}. Correct the path.")
        size = path.stat().st_size
        found = [Member(path, path.name, size, "file", stored=size)]
    else:
        found = [member for member in members(path) if member.name.endswith(".npy")] if path.is_file() else []
    if not found:
        raise UserError(f"{path} is no .npz or .npy file with arrays. Correct the path.")
    return {member.name.removesuffix(".npy"): _described(member) for member in found}


def _described(member: Member) -> StoredArray:
    with stream(member, LARGEST) as file:
        try:
            shape, dtype, _ = header(file, member.size)
        except Exception as error:  # Damaged or hostile, it fails in many ways.
            raise UserError(f"{member} is not a plain array ({error}). Fetch or save it again.") from error
    return StoredArray(member, shape, dtype)
