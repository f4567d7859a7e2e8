"""Arrays in files of numpy, of which entries are read one by one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fdtrain.data.decode import npy_header
from fdtrain.data.sources.archive import MAX_READ, Member, members, single, stream
from fdtrain.errors import UserError

LARGEST = 1 << 44
"""The most bytes of an array that is read image by image."""
PIECE = 1 << 20


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which nothing but the header has been read. ``transposed``: each entry is stored so."""

    member: Member
    shape: tuple[int, ...]
    dtype: np.dtype
    transposed: bool = False

    def __str__(self) -> str:
        return str(self.member)

    @property
    def count(self) -> int:
        """The number of entries."""
        return self.shape[0] if self.shape else 0

    def load(self) -> np.ndarray:
        """All of a small array. Raises UserError: it is large, or damaged."""
        return next(replace(self, shape=(1, *self.shape)).entries(range(1)))

    def entries(self, stretch: range) -> Iterator[np.ndarray]:
        """A range along the first dimension, one by one. The end of the array is read with its last entries, so that
        the checksum of an archive is verified before those are given. Raises UserError: the file is damaged, ends
        early, or has changed."""
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        if each > MAX_READ:
            raise UserError(f"{self} has {each} bytes to be read at once. Is it the right array?")
        start = self.member.size - math.prod(self.shape) * self.dtype.itemsize + stretch.start * each
        with stream(self.member, LARGEST) as file:
            if self.member.kind == "file":
                file.seek(start)
            else:
                for a, b in pairwise([*range(0, start, PIECE), start]):
                    file.read(b - a)
            step = max(1, PIECE // max(1, each))
            for first in range(stretch.start, stretch.stop, step):
                count = min(step, stretch.stop - first)
                data = file.read(count * each)
                if len(data) != count * each or (first + count == self.shape[0] and file.read(1)):
                    raise UserError(f"{self} does not have the {self.shape[0]} entries of its header. Fetch it again.")
                block = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
                yield from block.swapaxes(1, 2) if self.transposed else block


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a ``.npz`` file by name, or that of a ``.npy`` file, named after it. Raises UserError: no such
    file, or arrays that are not plain."""
    if path.suffix == ".npy":
        if not path.is_file():
            raise UserError(f"no file {path}. Correct the path.")
        found = [single(path)]
    else:
        found = [member for member in members(path) if member.name.endswith(".npy")] if path.is_file() else []
    if not found:
        raise UserError(f"{path} is no .npz or .npy file with arrays. Correct the path.")
    return {member.name.removesuffix(".npy"): _described(member) for member in found}


def _described(member: Member) -> StoredArray:
    with stream(member, LARGEST) as file:
        try:
            shape, dtype = npy_header(file, member.size)
        except Exception as error:  # Damaged or hostile, it fails in many ways.
            raise UserError(f"{member} is not a plain array ({error}). Fetch or save it again.") from error
    return StoredArray(member, shape, dtype)
