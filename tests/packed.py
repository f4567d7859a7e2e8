"""Small packed data sets, made member by member, so that tests can also make what the packer never would."""

import hashlib
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdtrain.data.dataset import VERSION, DatasetDescription, Shard, write_description
from fdtrain.errors import UserError


def image(number: int, size: int = 4, channels: int = 3) -> np.ndarray:
    """An image that tells its number."""
    pixels = np.full((size, size, channels), number % 251, np.uint8)
    pixels[0, 0, 0], pixels[0, 1, 0] = number % 256, number // 256
    return pixels


def number(pixels: np.ndarray) -> int:
    """Of an image ``(C, H, W)``."""
    return int(pixels[0, 0, 0]) + 256 * int(pixels[0, 0, 1])


def npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def picture(pixels: np.ndarray, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, kind, **options)
    return file.getvalue()


def raw_png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of this header and these chunks, which no writer makes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def npy_header(text: bytes, body: bytes = b"") -> bytes:
    """A file of numpy with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def sample(i: int, encoding: str = "npy", broken: bool = False, **shape) -> list[tuple[str, bytes]]:
    pixels = image(i, **shape)
    data = b"broken" if broken else npy(pixels) if encoding == "npy" else picture(pixels)
    return [(f"{i:06d}.{encoding}", data), (f"{i:06d}.cls", str(i % 10).encode())]


def tar_bytes(members: Iterable[tuple], format: int = tarfile.USTAR_FORMAT, mode: str = "w") -> bytes:
    """Of names and bytes; or of names, no bytes, the type of another member, and the target of a link."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=format) as tar:
        for name, data, *other in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if other:
                info.type, info.linkname = other
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple], format: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    path.write_bytes(tar_bytes(members, format, mode))
    return path


def zip_bytes(files: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return file.getvalue()


def describe(folder: Path, splits: dict[str, dict[str, int]], **changes) -> DatasetDescription:
    """Write the dataset.json of shards that lie in ``folder``: by split, file names and their numbers of images."""

    def shard(file: str, images: int) -> Shard:
        data = (folder / file).read_bytes()
        return Shard(file=file, images=images, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    settings = {
        "version": VERSION,
        "name": folder.name,
        "source": "made for a test",
        "size": 4,
        "channels": 3,
        "levels": 256,
        "classes": [str(i) for i in range(10)],
        "encoding": "npy",
        "splits": {split: [shard(*item) for item in files.items()] for split, files in splits.items()},
    } | changes
    description = DatasetDescription(**settings)
    write_description(folder, description)
    return description


def pack(
    folder: Path,
    counts: Sequence[int] = (5, 7, 4),
    encoding: str = "npy",
    first: int = 0,
    broken: Container[int] = (),
    **changes,
) -> DatasetDescription:
    """A data set of numbered images in shards of so many, all in 'train', some of them broken."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {key: changes[key] for key in ("size", "channels") if key in changes}
    files = {}
    for i, count in enumerate(counts):
        files[f"train-{i:06d}.tar"] = count
        members = [m for n in range(first, first + count) for m in sample(n, encoding, n in broken, **shape)]
        write_tar(folder / f"train-{i:06d}.tar", members)
        first += count
    return describe(folder, {"train": files}, encoding=encoding, **changes)


@contextmanager
def refused(match: str | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """What is done in this context is a UserError: one line, or one for each of several images, printable and short."""
    with pytest.raises(UserError, match=match) as error:
        yield error
    first, *others = str(error.value).split("\n")
    assert not others or re.match(r"\d+ images", first)
    assert all(line.isprintable() and len(line) < 600 for line in (first, *others))
