"""Decodes pictures and arrays, which are untrusted: their headers are checked before any pixel is decoded.

The members of shards that are images are ``npy`` (uint8 arrays, no pickles), ``png``, ``jpg``, ``webp``; a member's
length is checked before it is read.
"""

import io
import math
import os
import struct
from collections.abc import Callable
from typing import IO
from zlib import crc32

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from fdtrain.errors import UserError, excerpt

PNG, JPEG, WEBP, BMP = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
)
PICTURES = {"png": PNG, "jpg": JPEG, "jpeg": JPEG, "webp": WEBP}
IMAGES = ("npy", *PICTURES)
_METADATA = 1 << 20
"""Bytes that a picture may be longer than eight times its pixels: profiles, comments."""
_NPY_HEADER = 1 << 12
_NPY_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""The colour type of the header, by channels."""
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


PngImagePlugin.MAX_TEXT_CHUNK = 8 << 20
"""A PNG with a long text, such as the recipe of a picture, is as good as another; one that inflates to more is not."""


class Broken(Exception):
    """A sample that cannot be used, and why."""


class BadSample(UserError):
    """One sample cannot be packed, though others may. The packer continues, and reports all such samples."""


def opened(data: bytes, kind: type, check: Callable[[int, int], None]) -> ImageFile.ImageFile:
    """A picture of this kind, of which the header is read; ``check`` refuses a width and height in pixels. Raises
    Broken: it is none; animated; of more than eight bits a channel."""
    if kind is WEBP:
        # Its decoder allocates the whole picture when it is made.
        check(*webp_size(data))
    # The plugins raise whatever their parsing runs into on a broken file: any error is the file's.
    try:
        picture = kind(io.BytesIO(data))
    except Exception as error:
        raise Broken(f"not a picture of its type ({excerpt(error)})") from error
    check(*picture.size)
    # Pillow opens coloured PNGs of 16 bits as RGB and drops the lower eight.
    if kind is PNG and any("16" in str(tile[3]) for tile in picture.tile):
        raise Broken("of 16 bits, not of 8 bits a channel")
    # Phones' JPEGs may carry previews as further frames, which are passed over.
    if getattr(picture, "n_frames", 1) > 1:
        raise Broken("animated")
    return picture


def npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a ``.npy`` file of so many bytes, without numpy's loader, which allocates what is claimed and
    may unpickle. Raises ValueError: not a plain array in C order that fills the file exactly."""
    head = io.BytesIO(file.read(_NPY_HEADER))
    try:
        version = np.lib.format.read_magic(head)
        if version not in _NPY_READERS:
            raise ValueError(f"npy format {version}")
        shape, fortran, dtype = _NPY_READERS[version](head)
    except Exception as error:  # Its parser raises what it runs into.
        raise ValueError(str(error)) from error
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize + head.tell() != size:
        raise ValueError(f"array of {dtype} of shape {shape} in {size} bytes")
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype


def array(data: bytes) -> np.ndarray:
    """What a file of numpy holds: a view. Raises Broken: no plain array, or not exactly."""
    try:
        shape, dtype = npy_header(io.BytesIO(data), len(data))
    except ValueError as error:
        raise Broken(f"not an npy array ({excerpt(error)})") from error
    count = math.prod(shape)
    return np.frombuffer(data, dtype, count, len(data) - count * dtype.itemsize).reshape(shape)


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP picture by its first chunk (RFC 9649). Raises Broken: it has none."""
    kind, size = data[12:16], (0, 0)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            size = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and data[20] == 0x2F:
            bits = int.from_bytes(data[21:25], "little")
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"VP8X":
            size = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if not all(size):
        raise Broken("not a picture of its type (no WebP header)")
    return size


class ImageDecoder:
    """Reads images of one data set's shape straight into a batch."""

    def __init__(self, size: int, channels: int):
        self.shape = (size, size, channels)
        self.dims = size * size * channels
        self.mode = _MODES[channels]
        # The header of the last good array: other arrays of the data set have the same, byte for byte.
        self._header = b""
        self._buffer = bytearray()
        # Signature and header of a PNG of the data set's shape: 8 bits, not interlaced.
        header = struct.pack(">4sIIBBBBB", b"IHDR", size, size, 8, _PNG_COLOURS[channels], 0, 0, 0)
        self._png = _PNG_SIGNATURE + b"\0\0\0\x0d" + header + crc32(header).to_bytes(4, "big")

    def read(self, file: int, extension: str, offset: int, size: int, out: np.ndarray) -> None:
        """The image at ``offset`` of an open file into ``out`` ``(H W C,)`` uint8. Raises Broken: not an image, not of
        this shape, or absurdly long."""
        if extension == "npy":
            expected = len(self._header) + self.dims
            if size == expected == os.preadv(file, [self._buffer, out.data], offset) and self._buffer == self._header:
                return
            self._array(_read(file, offset, size, self.dims + _NPY_HEADER), out)
        else:
            data = _read(file, offset, size, 8 * self.dims + _METADATA)
            if extension == "png" and data.startswith(self._png):
                self._plain_png(data, out)
            else:
                self._picture(data, PICTURES[extension], out)

    def _array(self, data: bytes, out: np.ndarray) -> None:
        values = array(data)
        if values.dtype != np.uint8:
            raise Broken(f"array of {excerpt(values.dtype)}, expected uint8")
        self._check((*values.shape, 1) if values.ndim == 2 else values.shape)
        out[:] = values.reshape(-1)
        start = len(data) - self.dims
        self._header, self._buffer = data[:start], bytearray(start)

    def _plain_png(self, data: bytes, out: np.ndarray) -> None:
        """Decode a PNG with the usual header without Pillow's parser, which takes as long as the decoder does.

        A file with chunks other than those of pixels goes to the parser.
        """
        position, end, parts = len(self._png), len(data) - len(_PNG_END), []
        while position < end and data[position + 4 : position + 8] == b"IDAT":
            begin = position + 4
            position = begin + 8 + int.from_bytes(data[position:begin], "big")
            parts.append(data[begin + 4 : position - 4])
            if crc32(data[begin : position - 4]) != int.from_bytes(data[position - 4 : position], "big"):
                raise Broken("cannot be decoded (wrong checksum)")
        if position != end or not parts or not data.endswith(_PNG_END):
            return self._picture(data, PNG, out)
        try:
            picture = Image.frombytes(self.mode, self.shape[:2], b"".join(parts), "zip", self.mode)
            out[:] = np.frombuffer(picture.tobytes(), np.uint8)
        except Exception as error:
            raise Broken(f"cannot be decoded ({error})") from error

    def _picture(self, data: bytes, kind: type, out: np.ndarray) -> None:
        picture = opened(data, kind, lambda width, height: self._check((height, width, self.shape[2])))
        if picture.mode != self.mode:
            raise Broken(f"picture of mode {picture.mode}, expected {self.mode}")
        try:
            out[:] = np.asarray(picture).reshape(-1)
        except Exception as error:
            raise Broken(f"cannot be decoded ({excerpt(error)})") from error

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            actual, expected = ("x".join(map(str, s)) for s in (shape, self.shape))
            raise Broken(f"image of height x width x channels {excerpt(actual)}, expected {expected}")


def _read(file: int, offset: int, size: int, most: int) -> bytes:
    if size > most:
        raise Broken(f"image member of {size} bytes, at most {most} are admitted for this shape")
    data = os.pread(file, size, offset)
    if len(data) < size:
        raise Broken("the shard was cut short after it was opened")
    return data
