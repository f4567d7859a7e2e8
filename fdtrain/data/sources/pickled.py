"""Reads pickles of arrays as data. A pickle is a program, and here it may only build what such files need.

The names that a pickle imports are answered with stand-ins, so not even numpy's own reconstruction runs.
"""

import pickle
from typing import Any

import numpy as np

from fdtrain.data.sources.archive import Member, stream
from fdtrain.errors import UserError


def load(member: Member) -> dict[str, Any]:
    """The dict of a batch file, with text keys, of lists, numbers, strings and numpy arrays of numbers. Other text of
    Python 2 becomes bytes. Raises UserError: the pickle is broken or asks for anything else; nothing of it has run."""
    with stream(member) as file:
        try:
            content = _Unpickler(file, encoding="bytes").load()
            # A zip checks its sum at the end.
            file.read(1)
            return {
                key.decode("latin1") if isinstance(key, bytes) else str(key): getattr(value, "array", value)
                for key, value in content.items()
            }
        except _Refused as error:
            raise UserError(
                f"{member} is not a plain pickle of arrays: it asks for {error}. Do not trust it."
            ) from None
        except Exception as error:  # A hostile program can fail in any way.
            raise UserError(
                f"{member} is not a pickle of arrays, or cut short ({type(error).__name__}: {error}). Fetch it again."
            ) from error


class _Refused(Exception):
    """The pickle imports a name that no such file needs."""


class _Unpickler(pickle._Unpickler):
    # The C implementation can be made to allocate gigabytes for its memo by five bytes.
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _Refused(repr(f"{module}.{name}")) from None


class _Array:
    """Stands in for ``numpy.core.multiarray._reconstruct``; its state makes it an array."""

    array: np.ndarray

    def __init__(self, kind: object, shape: tuple, code: object):
        if kind is not _ndarray:
            raise ValueError("an array of a class of its own")

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or fortran or not isinstance(data, bytes):
            raise ValueError("an array that is not of plain numbers in C order")
        # Fails unless the bytes are exactly as many as the shape says: a shape alone allocates nothing.
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape)


class _Dtype:
    """``numpy.dtype`` of a number: kind, bytes, and (from its state) byte order."""

    def __init__(self, code: str | bytes, *_: object):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise ValueError(f"a byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


def _ndarray(*_: object) -> None:
    raise ValueError("a bare array")


def _encode(text: str, codec: str) -> bytes:
    """Decodes the bytes that Python 3 writes in older protocols."""
    if codec != "latin1":
        raise ValueError(f"text in {codec!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
