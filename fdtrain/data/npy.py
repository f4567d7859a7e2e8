"""Headers of numpy's files, read without numpy's loader, which allocates what they claim and may unpickle."""

import io
import math
from typing import IO

import numpy as np

LONGEST_HEADER = 1 << 14
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a ``.npy`` file of so many bytes. Raises ValueError: not a plain array in C order that fills
    the file exactly."""
    head = io.BytesIO(file.read(LONGEST_HEADER))
    try:
        version = np.lib.format.read_magic(head)
        if version not in _READERS:
            raise ValueError(f"npy format {version}")
        shape, fortran, dtype = _READERS[version](head)
    except Exception as error:  # Its parser raises what it runs into.
        raise ValueError(str(error)) from error
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize + head.tell() != size:
        raise ValueError(f"array of {dtype} of shape {shape} in {size} bytes")
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype
