"""The members of a tar file, by a scan of its headers.

``tarfile`` builds an object for every member, some 20 us each; a shard needs only names and places, and is
indexed again whenever a worker opens it. Nor is ``tarfile`` safe for untrusted archives: crafted extended headers
keep it busy for ever, and at a damaged header it ends silently.

The formats of 1988 (USTAR), of GNU tar and of POSIX 2001 (pax) are read. Every step of the scan moves forward, and
the headers before a member are bounded. Whatever two readers could understand differently is refused: see
:class:`BadTar`. Archives that are packed from, compressed or with links, are read by
:mod:`fdtrain.data.sources.tar_stream`.
"""

import re
from collections.abc import Iterator
from mmap import mmap
from zlib import adler32

BLOCK = 512
LONGEST_EXTENSION = 1 << 16
"""Bytes of an extended header or of a long name: sixteen times what a path may have."""

_FILE, _OLD_FILE, _CONTIGUOUS = b"0", b"\0", b"7"
_FOLDER = b"5"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", _FOLDER, b"6")
"""Links, devices, folders and FIFOs."""
_LONG_NAME, _LONG_LINK, _PAX, _PAX_SOLARIS, _PAX_GLOBAL = b"L", b"K", b"x", b"X", b"g"
_META = re.compile(rb"__[^/]*__(/|$)")
"""What webdataset's reader skips too."""
_ENDS_NUMBER = (0, ord(" "))
_LARGEST_OCTAL = 8**11 - 1


class BadTar(ValueError):
    """This is no tar file, or it is damaged, cut short, or made to be understood in more than one way."""


def members(data: mmap) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size (bytes) of every file in the archive, in order.

    Links, folders, and what webdataset takes for metadata (``__meta__/...``) are skipped.

    Raises:
        BadTar: the archive is damaged or ambiguous.
    """
    end = len(data)
    position = 0
    # The second part of the last plain file's header, and its sum: that of most others is the same.
    tail, tail_sum = b"", 0
    while True:
        header = data[position : position + BLOCK]
        if len(header) < BLOCK:
            raise BadTar("cut short: no end-of-archive block")
        if header[156:] == tail and (size := _plain_size(header, tail_sum)) is not None:
            name, offset = header[:100].partition(b"\0")[0], position + BLOCK
            position = offset + -(-size // BLOCK) * BLOCK
        elif not any(header):
            _check_end(data, position)
            return
        else:
            name, offset, size, position = _read_headers(data, header, position)
            if header[156:157] == _FILE and header[257:262] == b"ustar" and not header[345]:
                tail, tail_sum = header[156:], sum(header[156:])
        if position > end:
            raise BadTar("cut short: a member runs past the end of the file")
        if name is not None and not (name.startswith(b"__") and _META.match(name)):
            yield name, offset, size


def _check_end(data: mmap, position: int) -> None:
    """Raises BadTar if more than zeros follow the end: most readers would miss what was appended."""
    for start in range(position, len(data), 1 << 20):
        if data[start : start + (1 << 20)].strip(b"\0"):
            raise BadTar(f"it goes on after its end at byte {position}: several archives in one file")


def _plain_size(header: bytes, tail_sum: int) -> int | None:
    """The size in the header of a plain file; None: the header needs the full checks."""
    digits = header[124:135]
    try:
        # Adler's sum modulo 65521 is the quickest there is; the header's own field counts as spaces in it.
        if digits.isdigit() and adler32(header[:148]) & 0xFFFF == (int(header[148:154], 8) - tail_sum - 255) % 65521:
            return int(digits, 8) if header[135] in _ENDS_NUMBER else None
    except ValueError:
        return None
    return None


def _read_headers(data: mmap, header: bytes, position: int) -> tuple[bytes | None, int, int, int]:
    """Name (None: not a file), offset and size of the member whose headers, of any kind, begin at ``position``,
    and the position of the next."""
    name = size = None
    seen: set[bytes] = set()
    while True:
        _check_sum(header, position)
        kind, length, offset = header[156:157], _number(header[124:136], position), position + BLOCK
        if kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_SOLARIS, _PAX_GLOBAL):
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
        names = []
        if kind == _LONG_NAME:
            names = [content.partition(b"\0")[0]]
        elif kind != _LONG_LINK:
            records = _records(content, offset)
            names = [records[b"path"]] if b"path" in records else []
            if b"size" in records:
                if size is not None:
                    raise BadTar(f"two sizes for one member, at byte {position}")
                size = _decimal(records[b"size"], offset)
            if kind == _PAX_GLOBAL and (names or size is not None):
                raise BadTar(f"a global header that names or sizes every member, at byte {position}")
        if names and name is not None:
            raise BadTar(f"two names for one member, at byte {position}")
        name, position = (names[0] if names else name), following
    if name is None:
        name = _short_name(header, position)
    if size is not None and length not in (size, 0) and size <= _LARGEST_OCTAL:
        raise BadTar(f"two sizes for one member, at byte {position}")
    size = length if size is None else size
    if kind == _OLD_FILE and name.endswith(b"/"):
        kind = _FOLDER
    if kind in (_FILE, _OLD_FILE, _CONTIGUOUS):
        if name.endswith(b"/"):
            raise BadTar(f"a file with the name of a folder, at byte {position}")
        return name, offset, size, offset + -(-size // BLOCK) * BLOCK
    if kind not in _WITHOUT_DATA:
        raise BadTar(f"a member of type {kind!r} at byte {position}, which is no plain file")
    if size:
        # Some readers skip so many bytes, some do not.
        raise BadTar(f"a link, folder or device with data, at byte {position}")
    return None, offset, 0, offset


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
    # Old writers added up signed bytes.
    if _sum_field(header) not in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest)):
        raise BadTar(f"no tar header at byte {position}")


def _sum_field(header: bytes) -> int:
    try:
        return int(header[148:156].partition(b"\0")[0], 8)
    except ValueError:
        return -1


def _octal(field: bytes, position: int) -> int:
    digits = field.partition(b"\0")[0].strip(b" ")
    try:
        # int() would also take signs and underscores.
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    if digits:
        raise BadTar(f"no number for a size, at byte {position}")
    return 0


def _number(field: bytes, position: int) -> int:
    """Octal digits; or, as GNU tar has it, 0x80 and eleven bytes of a number."""
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field, position)


def _decimal(digits: bytes, position: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BadTar(f"no number in an extended header at byte {position}")
    return int(digits)
