"""A tar of small files, written as it grows, with its checksum; nothing of it depends on when or where it is made.

``tarfile`` takes some 30 us to make the header of each member: with two members to an image that is most of the
time that writing small images takes. The bytes here are those of its USTAR format.
"""

import hashlib
import tarfile
from typing import BinaryIO

BLOCK = 512
_BUFFER = 1 << 20
_ZEROS = bytes(BLOCK)


class TarWriter:
    """Members of mode 0444 and time 0, owned by "bigdata" as webdataset's own writer has it.

    Args:
        file: to write to; errors of it are raised by :meth:`add` and :meth:`close`.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, 0
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._pending = 0
        # Headers of one size differ in names and checksums.
        self._by_size: dict[int, tuple[bytes, int]] = {}

    def add(self, name: bytes, *data: bytes) -> None:
        """Append a file whose bytes are those of ``data`` in turn. Names have at most 100 bytes."""
        size = sum(map(len, data))
        padding = -size % BLOCK
        self._pieces += (self._header(name, size), *data, _ZEROS[:padding])
        self._pending += BLOCK + size + padding
        if self._pending >= _BUFFER:
            self._flush()

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
