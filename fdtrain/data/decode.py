"""Decodes the members of a shard to images and labels. They are untrusted data, and never run as code.

Known members are ``npy`` (uint8 arrays, no pickles), ``png``, ``jpg``, ``webp``; ``cls`` (the label in ASCII) and
``json`` (an object whose ``label`` it is), or those that ``dataset.json`` names. An image's size is read from its
header, and refused, before any pixel is decoded; a member's length before it is read.
"""

import io
import json
import os
import struct
from typing import IO
from zlib import crc32

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from fdtrain.errors import excerpt

PICTURES = {
    "png": PngImagePlugin.PngImageFile,
    "jpg": JpegImagePlugin.JpegImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}
IMAGES = ("npy", *PICTURES)
LABELS = ("cls", "json")
LONGEST_LABEL = {"cls": 20, "json": 1 << 20}
"""In bytes."""
LONGEST_NAME = 4000
"""Bytes of a label that is the name of a class."""
_METADATA = 1 << 20
"""Bytes that a picture may be longer than eight times its pixels: profiles, comments."""
_NPY_HEADER = 1 << 12
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""The colour type of the header, by channels."""
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


PngImagePlugin.MAX_TEXT_CHUNK = 8 << 20
"""A PNG with a long text, such as the recipe of a picture, is as good as another; one that inflates to more is not."""


class Broken(Exception):
    """A sample that cannot be used, and why."""


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
        """The image at ``offset`` of an open file into ``out`` ``(H W C,)`` uint8.

        Raises:
            Broken: not an image, not of this shape, or absurdly long.
        """
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
        stream = io.BytesIO(data)
        try:
            shape, fortran, dtype = npy_header(stream)
        except Exception as error:  # As with pictures: numpy's parser raises what it runs into.
            raise Broken(f"not an npy array ({excerpt(error)})") from error
        if dtype != np.uint8 or fortran:
            raise Broken(f"array of {excerpt(dtype)}, expected uint8 in C order")
        self._check((*shape, 1) if len(shape) == 2 else shape)
        start = stream.tell()
        if len(data) - start != self.dims:
            raise Broken(f"array of {len(data) - start} bytes, expected {self.dims}")
        out[:] = np.frombuffer(data, np.uint8, offset=start)
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
            return self._picture(data, PICTURES["png"], out)
        try:
            picture = Image.frombytes(self.mode, self.shape[:2], b"".join(parts), "zip", self.mode)
            out[:] = np.frombuffer(picture.tobytes(), np.uint8)
        except Exception as error:
            raise Broken(f"cannot be decoded ({error})") from error

    def _picture(self, data: bytes, kind: type, out: np.ndarray) -> None:
        if kind is WebPImagePlugin.WebPImageFile:
            # Its decoder allocates the whole picture when it is made.
            self._check((*webp_size(data), self.shape[2]))
        # The plugins raise whatever their parsing runs into on a broken file: any error is the file's.
        try:
            picture = kind(io.BytesIO(data))
        except Exception as error:
            raise Broken(f"not a picture of its type ({excerpt(error)})") from error
        self._check((picture.height, picture.width, len(picture.getbands())))
        if picture.mode != self.mode:
            raise Broken(f"picture of mode {picture.mode}, expected {self.mode}")
        if getattr(picture, "n_frames", 1) > 1:
            raise Broken("animated")
        try:
            out[:] = np.asarray(picture).reshape(-1)
        except Exception as error:
            raise Broken(f"cannot be decoded ({excerpt(error)})") from error

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            actual, expected = ("x".join(map(str, s)) for s in (shape, self.shape))
            raise Broken(f"image of height x width x channels {excerpt(actual)}, expected {expected}")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type of the array whose bytes follow in ``file``.

    numpy's parser raises what it runs into.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy format {version}")
    return readers[version](file)


def webp_size(data: bytes) -> tuple[int, int]:
    """Height and width of a WebP picture by its first chunk (RFC 9649).

    Raises:
        Broken: it has none.
    """
    kind, size = data[12:16], (0, 0)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            size = height & 0x3FFF, width & 0x3FFF
        elif kind == b"VP8L" and data[20] == 0x2F:
            bits = int.from_bytes(data[21:25], "little")
            size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        elif kind == b"VP8X":
            size = int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if not all(size):
        raise Broken("not a picture of its type (no WebP header)")
    return size


def label(extension: str, data: bytes) -> int:
    """The label in a member; -1 if there is none.

    Raises:
        ValueError: it contains no number.
    """
    if extension == "cls":
        return int(data)
    value = _field(data, "label", -1)
    if type(value) is not int:
        raise ValueError("label is not a whole number")
    return value


def class_name(data: bytes, field: str | None) -> str | None:
    """The name of the class in a member, or the digits of its number; None if there is none.

    Args:
        field: of the object in a JSON member; None: the member is a text.

    Raises:
        ValueError: it is neither a text in UTF-8 nor a whole number.
    """
    value = data.decode() if field is None else _field(data, field, None)
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("label is neither a text nor a whole number")
    return value.strip()


def _field(data: bytes, field: str, default: object) -> object:
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return content.get(field, default) if isinstance(content, dict) else default


def _read(file: int, offset: int, size: int, most: int) -> bytes:
    if size > most:
        raise Broken(f"image member of {size} bytes, at most {most} are admitted for this shape")
    data = os.pread(file, size, offset)
    if len(data) < size:
        raise Broken("the shard was cut short after it was opened")
    return data
