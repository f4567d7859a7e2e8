"""Files in a folder, zip or tar: listed without reading them, read one by one, never extracted to disk."""

import io
import lzma
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fdtrain.errors import UserError

MAX_READ = 1 << 28
"""Bytes of the largest file that is read at once: many times any image that one trains on."""

MAX_STREAM = 1 << 33
"""Bytes of the largest file that is streamed: five times a pickled batch of ImageNet-64."""

BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
"""What the standard library's readers raise on damaged archives."""


class Member(NamedTuple):
    """One file, and where its bytes are, so that reading it needs no second look at the archive's directory.

    ``kind`` is file, tar, compressed-tar, stored or deflated (in a zip). ``path`` is the archive (or the file
    itself), ``offset`` where the bytes begin in it (in a zip: the local header), ``stored`` their number there.
    """

    path: Path
    name: str
    size: int
    kind: str
    offset: int = 0
    stored: int = 0
    crc: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.kind == "file" else f"{self.path}, member '{self.name}'"


def members(path: Path) -> list[Member]:
    """The regular files in a folder (by name), zip or tar (as stored). Hidden ones are left out.

    Raises:
        UserError: no such file, not an archive, or a broken one.
    """
    try:
        if path.is_dir():
            found = _folder(path)
        elif not path.exists():
            raise UserError(f"no file or folder {path}. Download it first, or correct the path.")
        elif zipfile.is_zipfile(path):
            found = _zip(path)
        else:
            found = _tar(path)
        return [member for member in found if not _hidden(member.name)]
    except BROKEN as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(
            f"{path} cannot be read as a folder, zip or tar ({reason}). It may be cut short: fetch it again."
        ) from error


def _hidden(name: str) -> bool:
    # Systems leave .DS_Store, ._image.png and __MACOSX/ in folders and zips.
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(path: Path) -> Iterator[Member]:
    files = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
    names = {file.relative_to(path).as_posix(): file for file in files}
    for name in sorted(names):
        size = names[name].stat().st_size
        yield Member(names[name], name, size, "file", stored=size)


def _zip(path: Path) -> Iterator[Member]:
    kinds = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1 or info.compress_type not in kinds:
                raise UserError(f"{path}, member '{info.filename}' is encrypted or of a rare compression. Zip it anew.")
            kind = kinds[info.compress_type]
            yield Member(path, info.filename, info.file_size, kind, info.header_offset, info.compress_size, info.CRC)


def _tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:*") as archive:
        kind = "tar" if isinstance(archive.fileobj, io.BufferedReader) else "compressed-tar"
        while (info := archive.next()) is not None:
            # tarfile keeps every header it has seen: a gigabyte for a million images.
            archive.members = []
            if info.isreg():
                yield Member(path, posixpath.normpath(info.name), info.size, kind, info.offset_data, info.size)


def read(member: Member) -> bytes:
    """All bytes of a file.

    Raises:
        UserError: too large (refused before it is read or inflated), damaged, or in a compressed tar.
    """
    if member.size > MAX_READ:
        raise UserError(f"{member} claims {member.size} bytes, more than any image. Remove it.")
    if member.kind == "compressed-tar":
        raise UserError(f"{member.path} is a compressed tar, which can only be read from its start. Decompress it.")
    try:
        with member.path.open("rb") as file:
            file.seek(member.offset)
            if member.kind in ("stored", "deflated"):
                # The local header's name and extra field can be longer than the directory's.
                header = file.read(30)
                file.seek(
                    int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR
                )
            data = file.read(member.stored)
        if member.kind == "deflated":
            # Never more than the directory promised: a small file may inflate to fill the memory.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(member.size, 1))
    except (OSError, zlib.error) as error:
        raise UserError(f"{member} cannot be read ({error}). Fetch it again.") from error
    if len(data) != member.size or (member.kind in ("stored", "deflated") and zlib.crc32(data) != member.crc):
        raise UserError(f"{member} is cut short or damaged. Fetch it again.")
    return data


@contextmanager
def stream(member: Member) -> Iterator[BinaryIO]:
    """A large file, read as it is needed.

    Raises:
        UserError: too large, or damaged.
    """
    if member.size > MAX_STREAM:
        raise UserError(f"{member} claims {member.size} bytes, more than any published batch. Fetch it again.")
    try:
        if member.kind == "file":
            with member.path.open("rb") as file:
                yield file
        elif member.kind in ("stored", "deflated"):
            with zipfile.ZipFile(member.path) as archive, archive.open(member.name) as file:
                yield file
        else:
            with tarfile.open(member.path, "r:*") as archive:
                yield _extracted(archive, member)
    except BROKEN as error:
        raise UserError(f"{member} cannot be read ({error}). Fetch it again.") from error


def _extracted(archive: tarfile.TarFile, member: Member) -> BinaryIO:
    for info in archive:
        if posixpath.normpath(info.name) == member.name and info.isreg():
            return archive.extractfile(info)
    raise UserError(f"{member} has disappeared. Run the command again.")
