"""The members of a tar file, by a scan of its headers.

``tarfile`` builds an object for every member, some 20 us each; a shard needs only names and places, and is
indexed again whenever a worker opens it. Whatever is not a plain USTAR header of a file is left to ``tarfile``.
"""

import tarfile
from collections.abc import Iterator
from mmap import mmap

BLOCK = 512
_REGULAR = (0, ord("0"))
_ENDS_NUMBER = (0, ord(" "))


def members(data: mmap) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size (bytes) of every file in the archive, in order.

    Raises:
        ValueError, tarfile.TarError: this is no tar file, or it is cut short.
    """
    end = len(data)
    position = 0
    while True:
        header = data[position : position + BLOCK]
        if len(header) < BLOCK:
            raise ValueError("cut short: no end-of-archive block")
        if not header[0]:
            if any(header):
                raise ValueError(f"no tar header at byte {position}")
            return
        # Not a file, a number longer than octal digits can say, a name longer than 100 bytes, not USTAR.
        if header[156] not in _REGULAR or header[135] not in _ENDS_NUMBER or header[345] or header[257:262] != b"ustar":
            break
        size = int(header[124:135], 8)
        offset = position + BLOCK
        position = offset + -(-size // BLOCK) * BLOCK
        if size < 0 or position > end:
            raise ValueError("cut short: a member runs past the end of the file")
        yield header[:100].rstrip(b"\0"), offset, size
    yield from _rest(data, position)


def _rest(data: mmap, position: int) -> Iterator[tuple[bytes, int, int]]:
    """The same from ``position`` on, for any kind of tar."""
    data.seek(position)
    with tarfile.open(fileobj=data, mode="r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                if member.offset_data + member.size > len(data):
                    raise ValueError("cut short: a member runs past the end of the file")
                yield member.name.encode(errors="surrogateescape"), member.offset_data, member.size
