"""The images of a column: encoded, as bytes or ``{bytes, path}``, or arrays, as nested lists of pixel values."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fdtrain.data.sources.source import BadSample

if TYPE_CHECKING:
    import pyarrow as pa

ARRAYS = ("Array2D", "Array3D")
"""The hub's names of columns of arrays."""


def holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_arrays(kind: "pa.DataType") -> bool:
    """Whether these are lists of lists (of lists) of whole numbers."""
    import pyarrow as pa

    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth in (2, 3) and pa.types.is_integer(kind)


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_null(value: Any) -> bool:
    """Whether a row (a scalar of pyarrow) has no image: neither bytes nor an array nor a path."""
    import pyarrow as pa

    if value.is_valid and pa.types.is_struct(value.type):
        fields = [name for name in ("bytes", "path") if value.type.get_field_index(name) >= 0]
        return not any(value[name].is_valid for name in fields)
    return not value.is_valid


def image(value: Any, where: str) -> bytes | np.ndarray:
    """The image of a row (a scalar of pyarrow), encoded or as an array of uint8.

    Raises:
        BadSample: there is none, it is in a file of its own, or the array is not one of pixels.
    """
    import pyarrow as pa

    if is_null(value):
        raise BadSample(f"{where}: no image (null). Pack the other rows alone by --null-images skip.")
    if _is_list(value.type):
        return _array(value, where)
    data = (value["bytes"] if pa.types.is_struct(value.type) else value).as_py()
    if not isinstance(data, bytes):
        raise BadSample(f"{where}: no image bytes. Only data sets that embed their images can be packed.")
    return data


def _array(value: Any, where: str) -> np.ndarray:
    """Nested lists as an array."""
    import pyarrow.compute as pc

    values, shape = value.values, [len(value.values)]
    while _is_list(values.type):
        lengths = set(pc.call_function("list_value_length", [values]).to_pylist()) or {0}
        if len(lengths) != 1 or None in lengths:
            raise BadSample(f"{where}: rows of pixels of different lengths. Correct it.")
        shape += lengths
        values = values.flatten()
    if values.null_count:
        raise BadSample(f"{where}: pixels that are null. Correct it.")
    pixels = values.to_numpy(zero_copy_only=False)
    if pixels.dtype != np.uint8 and (pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255):
        raise BadSample(f"{where}: pixels of type {values.type} that are not all from 0 to 255. Convert them first.")
    return pixels.astype(np.uint8).reshape(shape)
