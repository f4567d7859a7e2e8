"""Lists the members of a tar, of any kind and compressed or not, in one pass and without trusting its headers.

``tarfile`` allocates as much memory as a header claims, recurses from header to header, can be sent backwards, and
takes a damaged header, or the end of the file, for the archive's end: images would be lost silently. Here headers are
bounded, the scan only moves forward, and an archive ends at its end-of-archive blocks. Shards, which are uncompressed
and must read the same for everyone, have a faster and stricter reader: :mod:`fdtrain.data.tar`.
"""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Bytes of a long name or of a set of pax records."""
MAX_EXTENSIONS = 8
"""Extended headers of one member. Writers use at most two."""
MAX_SIZE = 1 << 44
"""Bytes of a member: larger than any data set."""
MAX_PADDING = 1 << 26
"""Bytes of zeros after the end, of which a compressed archive could have any number."""

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_PAX, _GLOBAL, _LONG_NAME, _LONG_LINK = tarfile.XHDTYPE, tarfile.XGLTYPE, b"L", b"K"
_EXTENSIONS = (_PAX, _GLOBAL, _LONG_NAME, _LONG_LINK)
_PAX_KEYS = {"path", "linkpath", "size"}
_CHUNK = 1 << 20


class Link(NamedTuple):
    """What a hard or symbolic link refers to."""

    target: str
    symbolic: bool


class Entry(NamedTuple):
    """A file (``link`` is None) or a link. Its bytes are at ``offset`` of the uncompressed tar."""

    name: str
    offset: int
    size: int
    link: Link | None = None


def compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return _opener(file) is not None


@contextmanager
def _content(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        opener = _opener(file)
        if opener is None:
            yield file
        else:
            with opener(file) as content:
                yield content


def _opener(file: BinaryIO):
    magic = file.read(6)
    file.seek(0)
    return next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)


@contextmanager
def section(path: Path, offset: int, size: int) -> Iterator[BinaryIO]:
    """Open the ``size`` bytes at ``offset`` of the uncompressed tar, which are read as needed."""
    with _content(path) as file:
        file.seek(offset)
        yield io.BufferedReader(_Section(file, size))


class _Section(io.RawIOBase):
    def __init__(self, file: BinaryIO, size: int):
        self.file, self.remaining = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(min(len(buffer), self.remaining))
        if not data and self.remaining and len(buffer):
            raise EOFError("cut short")
        buffer[: len(data)] = data
        self.remaining -= len(data)
        return len(data)


def entries(path: Path) -> Iterator[Entry]:
    """All files and links of an archive, in order.

    Raises:
        ValueError, tarfile.TarError: not a tar, damaged, cut short, or holding what is neither file, folder nor link.
        OSError, EOFError, zlib.error, lzma.LZMAError: it cannot be read or decompressed.
    """
    with _content(path) as file:
        yield from _entries(file)


def _entries(file: BinaryIO) -> Iterator[Entry]:
    position, extensions = 0, 0
    long: dict[str, str] = {}
    everywhere: dict[str, str] = {}
    while True:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ValueError("cut short: no end-of-archive block")
        if not block.strip(b"\0"):
            _check_rest(file, position)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"no tar header at byte {position}: {error}") from None
        extends = info.type in _EXTENSIONS
        size = info.size if extends else _parsed_size({**everywhere, **long}.get("size", info.size))
        if not 0 <= size <= MAX_SIZE:
            raise ValueError(f"a member of {size} bytes at byte {position}")
        offset = position + BLOCK
        if extends:
            extensions += 1
            if size > MAX_EXTENSION or extensions > MAX_EXTENSIONS:
                raise ValueError(f"absurdly long names or attributes at byte {position}")
            data = file.read(size)
            if info.type == _GLOBAL:
                everywhere |= _records(data)
            elif info.type == _PAX:
                long |= _records(data)
            else:
                key = "path" if info.type == _LONG_NAME else "linkpath"
                long.setdefault(key, data.partition(b"\0")[0].decode("utf-8", "surrogateescape"))
        else:
            known = {**everywhere, **long}
            info.name, info.linkname = known.get("path", info.name), known.get("linkpath", info.linkname)
            # Links and folders have no data, whatever their headers claim.
            size = size if info.isreg() else 0
            if (entry := _entry(info, offset, size, position)) is not None:
                yield entry
            long, extensions = {}, 0
        position = offset + -(-size // BLOCK) * BLOCK
        file.seek(position)


def _entry(info: tarfile.TarInfo, offset: int, size: int, position: int) -> Entry | None:
    if info.isdir():
        return None
    if info.islnk() or info.issym():
        return Entry(info.name, offset, 0, Link(info.linkname, info.issym()))
    if not info.isreg() or info.issparse():
        raise ValueError(f"'{info.name}' at byte {position} is neither a plain file, a folder nor a link")
    return Entry(info.name, offset, size)


def _records(data: bytes) -> dict[str, str]:
    """The pax records ``"LENGTH KEY=VALUE\\n"`` of a member's name and size."""
    records, start = {}, 0
    end = len(data.rstrip(b"\0"))
    while start < end:
        length, space, _ = data[start : start + 20].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length) <= end - start:
            raise ValueError("damaged pax records")
        record = data[start + len(length) + 1 : start + int(length)]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise ValueError("damaged pax records")
        name = key.decode("utf-8", "surrogateescape")
        if name.startswith("GNU.sparse"):
            raise ValueError("a sparse file, whose bytes do not lie in one piece")
        if name in _PAX_KEYS:
            records[name] = value.decode("utf-8", "surrogateescape")
        start += int(length)
    return records


def _parsed_size(value: int | str) -> int:
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) < 20):
        raise ValueError(f"a member of {value[:30]!r} bytes")
    return int(value)


def _check_rest(file: BinaryIO, position: int) -> None:
    """Check that only zeros follow the end of an archive; another archive there would be lost."""
    for _ in range(MAX_PADDING // _CHUNK):
        data = file.read(_CHUNK)
        if data.strip(b"\0"):
            raise ValueError(f"it goes on after its end at byte {position}: several archives in one file")
        if not data:
            return
    raise ValueError(f"more than {MAX_PADDING} bytes of zeros after its end")
