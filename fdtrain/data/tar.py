"""Tar files: their members by a scan of their headers, and a writer of small files.

``tarfile`` builds an object for every member, some 20 us each. Nor is it safe for untrusted archives: crafted extended
headers keep it busy for ever or claim any memory, and at a damaged header it ends silently. Here headers are bounded,
every step of the scan moves forward, and an archive ends at its end-of-archive blocks.

The formats of 1988 (USTAR), of GNU tar and of POSIX 2001 (pax) are read. Whatever two readers could understand
differently is refused: see :class:`BadTar`.
"""

import bz2
import gzip
import hashlib
import lzma
import mmap
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import adler32

BLOCK = 512
LONGEST_EXTENSION = 1 << 16
"""Bytes of an extended header or of a long name: sixteen times what a path may have."""
MAX_PADDING = 1 << 26
"""Bytes of zeros after the end, of which a compressed archive could have any number."""

FILE, LINK, SYMBOLIC_LINK, FOLDER = b"0", b"1", b"2", b"5"
"""Kinds of members. The target of a symbolic link is as seen from its folder, of another from the archive's root."""
_OLD_FILE, _CONTIGUOUS = b"\0", b"7"
_WITHOUT_DATA = (LINK, SYMBOLIC_LINK, b"3", b"4", FOLDER, b"6")
"""Links, devices, folders and FIFOs."""
_GNU = {b"L": b"path", b"K": b"linkpath"}
"""Extended headers of one value, by its key in pax."""
_PAX_GLOBAL = b"g"
_PAX = (b"x", b"X", _PAX_GLOBAL)
"""Those with records; X is Solaris'."""
_LARGEST_OCTAL = 8**11 - 1
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_CHUNK = 1 << 20


class BadTar(ValueError):
    """This is no tar file, or it is damaged, cut short, or made to be understood in more than one way."""


class Entry(NamedTuple):
    """A member: its name, and where its bytes are. ``kind`` is its type in the format; links have a target."""

    name: bytes
    offset: int
    size: int
    kind: bytes = FILE
    target: bytes = b""


class Inflated:
    """The bytes of a compressed file by their places, which are read forward."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, places: slice) -> bytes:
        self.file.seek(places.start)
        return self.file.read(places.stop - places.start)


def scan(data: mmap.mmap | Inflated) -> Iterator[Entry]:
    """Every member, in order; a file of whatever kind has the usual one. Raises BadTar: the archive is damaged or
    ambiguous."""
    end, position = len(data), 0
    while True:
        header = data[position : position + BLOCK]
        if len(header) < BLOCK:
            raise BadTar("cut short: no end-of-archive block")
        if header == bytes(BLOCK):
            _check_end(data, position)
            return
        entry = _read_headers(data, header, position)
        position = entry.offset + -(-entry.size // BLOCK) * BLOCK
        if position > end:
            raise BadTar("cut short: a member runs past the end of the file")
        yield entry


def check_header(header: bytes, position: int, size: int) -> None:
    """Raises BadTar unless this is the header, at this byte, of a member of so many bytes."""
    _check_sum(header, position)
    # Headers before this one may give the size.
    if _number(header[124:136], position) not in (size, 0):
        raise BadTar("a member of another size")


def _check_end(data: mmap.mmap | Inflated, position: int) -> None:
    """Raises BadTar if more than zeros follow the end: most readers would miss what was appended."""
    for start in count(position, _CHUNK):
        chunk = data[start : start + _CHUNK]
        if chunk.strip(b"\0"):
            raise BadTar(f"it goes on after its end at byte {position}: several archives in one file")
        if not chunk:
            return
        if start - position > MAX_PADDING:
            raise BadTar(f"more than {MAX_PADDING} bytes of zeros after its end")


def _read_headers(data: mmap.mmap | Inflated, header: bytes, position: int) -> Entry:
    """The member whose headers, of any kind, begin at ``position``."""
    found: dict[bytes, bytes] = {}
    seen: set[bytes] = set()
    while True:
        _check_sum(header, position)
        kind, length, offset = header[156:157], _number(header[124:136], position), position + BLOCK
        if kind not in _GNU and kind not in _PAX:
            break
        if kind in seen:
            raise BadTar(f"two extended headers of one kind before a member, at byte {position}")
        seen.add(kind)
        if length > LONGEST_EXTENSION:
            raise BadTar(f"an extended header of {length} bytes at byte {position}")
        following = offset + -(-length // BLOCK) * BLOCK
        content = data[offset : offset + length]
        header = data[following : following + BLOCK]
        if len(header) < BLOCK:
            raise BadTar("cut short: an extended header without a member")
        records = {_GNU[kind]: content.partition(b"\0")[0]} if kind in _GNU else _records(content, offset)
        if records.keys() & {b"path", b"size"} & (found.keys() if kind != _PAX_GLOBAL else records.keys()):
            raise BadTar(f"two names or sizes for one member, or one for every member, at byte {position}")
        found |= records
        position = following
    name = found[b"path"] if b"path" in found else _short_name(header, position)
    size = _decimal(found[b"size"], position) if b"size" in found else length
    if length not in (size, 0) and size <= _LARGEST_OCTAL:
        raise BadTar(f"two sizes for one member, at byte {position}")
    if kind == _OLD_FILE and name.endswith(b"/"):
        kind = FOLDER
    if kind in (FILE, _OLD_FILE, _CONTIGUOUS):
        if name.endswith(b"/"):
            raise BadTar(f"a file with the name of a folder, at byte {position}")
        return Entry(name, offset, size)
    if kind not in _WITHOUT_DATA:
        raise BadTar(f"a member of type {kind!r} at byte {position}, which is no plain file")
    if size:
        # Some readers skip so many bytes, some do not.
        raise BadTar(f"a link, folder or device with data, at byte {position}")
    return Entry(name, offset, 0, kind, found.get(b"linkpath", header[157:257].partition(b"\0")[0]))


def _short_name(header: bytes, position: int) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    if not prefix:
        return name
    if header[257:263] != b"ustar\0":
        # GNU tar has times there, which others take for a folder's name.
        raise BadTar(f"a header of an incremental backup, or of no known format, at byte {position}")
    return prefix + b"/" + name


def _records(content: bytes, offset: int) -> dict[bytes, bytes]:
    """The ``LENGTH KEY=VALUE\\n`` records of a pax header."""
    records: dict[bytes, bytes] = {}
    position = 0
    # Some writers fill up with NUL bytes.
    while position < len(content) and content[position]:
        digits, space, _ = content[position : position + 8].partition(b" ")
        length = _decimal(digits, offset) if space else 0
        record = content[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or not key or len(record) < length or record[-1:] != b"\n":
            raise BadTar(f"a broken extended header at byte {offset}")
        if key in records or key.startswith(b"GNU.sparse.") or (key == b"path" and (b"\0" in value or not value)):
            raise BadTar(f"an extended header of a sparse file, or with contradictions, at byte {offset}")
        records[key] = value
        position += length
    return records


def _check_sum(header: bytes, position: int) -> None:
    rest = header[:148] + b" " * 8 + header[156:]
    try:
        told = int(header[148:156].partition(b"\0")[0], 8)
    except ValueError:
        told = -1
    # Adler's is the quickest of all sums, modulo 65521. Old writers added up signed bytes.
    same = adler32(rest) & 0xFFFF == (told + 1) % 65521 or told == sum(rest) - 256 * sum(byte > 127 for byte in rest)
    if told < 0 or not same:
        raise BadTar(f"no tar header at byte {position}")


def _number(field: bytes, position: int) -> int:
    """Octal digits; or, as GNU tar has it, 0x80 and eleven bytes of a number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    # int() would also take signs and underscores.
    if digits.strip(b"01234567"):
        raise BadTar(f"no number for a size, at byte {position}")
    return int(digits or b"0", 8)


def _decimal(digits: bytes, position: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BadTar(f"no number in an extended header at byte {position}")
    return int(digits)


def compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return _opener(file) is not None


@contextmanager
def opened(path: Path) -> Iterator[mmap.mmap | Inflated]:
    """The bytes of an archive, compressed or not. Raises OSError, ValueError: it cannot be opened, or is empty; and as
    the decompressors, here and within."""
    with path.open("rb") as file:
        if (opener := _opener(file)) is not None:
            with opener(file) as content:
                yield Inflated(content)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def _opener(file: BinaryIO):
    magic = file.read(6)
    file.seek(0)
    return next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)


class TarWriter:
    """Writes a tar of small files as it grows; nothing of it depends on when or where it is made.

    ``tarfile`` takes some 30 us to make the header of each member: with two members to an image that is most of the
    time that writing small images takes. The bytes here are those of its USTAR format, members of mode
    0444 and time 0, owned by "bigdata" as webdataset's own writer has it. Errors of the file are raised by :meth:`add`
    and :meth:`close`."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, 0
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._pending = 0
        # Headers of one size differ in names and checksums.
        self._by_size: dict[int, tuple[bytes, int]] = {}

    def add(self, name: bytes, *data: bytes) -> tuple[int, int]:
        """Append a file whose bytes are those of ``data`` in turn. Names have at most 100 bytes. Returns where its
        bytes begin, and how many they are."""
        size = sum(map(len, data))
        padding = -size % BLOCK
        offset = self.size + self._pending + BLOCK
        self._pieces += (self._header(name, size), *data, bytes(padding))
        self._pending += BLOCK + size + padding
        if self._pending >= _CHUNK:
            self._flush()
        return offset, size

    def close(self) -> str:
        """Write the end of the archive; the SHA-256 of the whole, in hexadecimal."""
        end = self.size + self._pending + 2 * BLOCK
        self._pieces.append(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        self._flush()
        self.file.flush()
        return self._digest.hexdigest()

    def _header(self, name: bytes, size: int) -> bytes:
        if len(name) > tarfile.LENGTH_NAME:
            raise ValueError(f"a name of {len(name)} bytes")
        if size not in self._by_size:
            info = tarfile.TarInfo()
            info.size, info.mode = size, 0o444
            info.uname = info.gname = "bigdata"
            header = info.tobuf(tarfile.USTAR_FORMAT)
            self._by_size[size] = header, int(header[148:154], 8)
        header, checksum = self._by_size[size]
        return b"%b%b%06o\0 %b" % (name.ljust(100, b"\0"), header[100:148], checksum + sum(name), header[156:])

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces, self._pending = [], 0
        self.size += len(data)
        self._digest.update(data)
        self.file.write(data)
