"""Files in a folder, zip or tar, listed without reading them, read one by one, and never extracted to disk."""

import gzip
import io
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from fdtrain.data import tar
from fdtrain.data.decode import BadSample
from fdtrain.errors import UserError

MAX_READ = 1 << 28
"""Bytes of the largest file that is read at once, many times the size of any training image."""

MAX_STREAM = 1 << 33
"""Bytes of the largest file that is streamed: five times a pickled batch of ImageNet-64."""

MAX_LINKS = 16
"""The longest chain of links to a file."""

BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
"""The errors that the standard library's readers raise on damaged archives."""


OTHERS = {
    (".parquet", ".arrow"): "fdtrain pack hub FOLDER reads them",
    (".npz", ".npy"): "fdtrain pack arrays FILE reads them",
    ("-ubyte", "-ubyte.gz"): "fdtrain pack idx FOLDER reads them",
    (".mat", ".bin", ".tfrecord", ".tfrecords"): "save their images as numpy.savez does, for fdtrain pack arrays",
    (".mdb",): "write its images into a folder, as LSUN's own data.py export does",
    (".tif", ".tiff", ".gif", ".avif", ".heic", ".jp2", ".jxl"): "convert them to PNG",
    (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"): "unpack it first",
}
"""What to do with files that are no images, by the ends of their names."""
SERIES = re.compile(r"-\d+-of-\d+$")
"""The end of a name that TensorFlow gives."""


def advice(names: Iterable[str]) -> str:
    """A sentence on the first of these files for which there is one, with a space before it."""
    for name in names:
        for ends, what in OTHERS.items():
            if SERIES.sub("", name.lower()).endswith(ends):
                return f" Files such as {posixpath.basename(name)} are not read here: {what}."
    return ""


class Member(NamedTuple):
    """One file and the place of its bytes, so that it is read without searching the archive's directory again.

    ``kind`` is file, gzip (a file), tar, compressed-tar, stored or deflated (in a zip). ``path`` is the archive (or the
    file itself), ``offset`` where the bytes begin in it (in a zip: the local header), ``stored`` their number there.
    """

    path: Path
    name: str
    size: int
    kind: str
    offset: int = 0
    stored: int = 0
    crc: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.kind in ("file", "gzip") else f"{self.path}, member '{self.name}'"


def single(path: Path, kind: str = "file") -> Member:
    """A file by itself."""
    size = _status(path).st_size
    return Member(path, path.name, size, kind, stored=size)


def members(path: Path) -> list[Member]:
    """The files in a folder (by name), zip or tar (as stored), without hidden ones. Links are resolved. Raises
    UserError: no such file, not an archive, or a broken one; a folder that cannot be read or is reached twice; a link
    to nothing; two files of one name; anything that is neither file nor folder."""
    try:
        if path.is_dir():
            files = _folder(path)
        elif not path.exists():
            raise UserError(f"no file or folder {path}. Download it first, or correct the path.")
        elif not path.is_file():
            raise UserError(f"{path} is neither a file nor a folder. Correct the path.")
        elif zipfile.is_zipfile(path):
            files = [member for member in _zip(path) if not _hidden(member.name)]
        else:
            files = _tar(path)
    except BROKEN as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        what = advice([path.name]) or " It may be cut short: fetch it again."
        raise UserError(f"{path} cannot be read as a folder, zip or tar ({reason}).{what}") from error
    for name, count in Counter(member.name for member in files).items():
        if count > 1:
            raise UserError(f"{path} holds '{name}' {count} times. Pack it anew with one file of each name.")
    return files


def _hidden(name: str) -> bool:
    # Systems leave .DS_Store, ._image.png and __MACOSX/ in folders and zips.
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(path: Path) -> list[Member]:
    files: dict[str, Member] = {}
    # No folder is read twice: a link may form a cycle, or multiply its target.
    seen: dict[tuple[int, int], Path] = {}
    pending = [(path, "")]
    while pending:
        folder, prefix = pending.pop()
        status = _status(folder)
        if (earlier := seen.setdefault((status.st_dev, status.st_ino), folder)) != folder:
            raise UserError(f"{folder} leads to the same folder as {earlier}. Remove the link.")
        try:
            names = [name for name in os.listdir(folder) if not _hidden(name)]
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}). Make it readable, or remove it.") from error
        for last in names:
            place, name = folder / last, prefix + last
            status = _status(place)
            if stat.S_ISDIR(status.st_mode):
                pending.append((place, f"{name}/"))
            elif stat.S_ISREG(status.st_mode):
                files[name] = Member(place, name, status.st_size, "file", stored=status.st_size)
            else:
                raise UserError(f"{place} is neither a file nor a folder. Remove it.")
    return [files[name] for name in sorted(files)]


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        what = "is a link to nothing" if path.is_symlink() else "cannot be read"
        raise UserError(f"{path} {what} ({error.strerror}). Correct or remove it.") from error


def _zip(path: Path) -> Iterator[Member]:
    kinds = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # Some programs of Windows write its separator, against the format.
            written = info.filename.replace("\\", "/") if info.create_system == 0 else info.filename
            if written.endswith("/"):
                continue
            if info.flag_bits & 1 or info.compress_type not in kinds:
                raise UserError(f"{path}, member '{info.filename}' is encrypted or of a rare compression. Zip it anew.")
            kind = kinds[info.compress_type]
            name = posixpath.normpath(written)
            yield Member(path, name, info.file_size, kind, info.header_offset, info.compress_size, info.CRC)


def _tar(path: Path) -> list[Member]:
    kind = "compressed-tar" if tar.compressed(path) else "tar"
    files: list[Member] = []
    links: dict[str, str] = {}
    with tar.opened(path) as data:
        for entry in tar.scan(data):
            name = posixpath.normpath(os.fsdecode(entry.name))
            if _hidden(name) or entry.kind == tar.FOLDER:
                continue
            if entry.kind in (tar.LINK, tar.SYMBOLIC_LINK):
                beside = posixpath.dirname(name) if entry.kind == tar.SYMBOLIC_LINK else ""
                links[name] = posixpath.normpath(posixpath.join(beside, os.fsdecode(entry.target)))
            elif entry.kind != tar.FILE:
                raise ValueError(f"'{name}' is neither a plain file, a folder nor a link")
            files.append(Member(path, name, entry.size, kind, entry.offset, entry.size))
    by_name = {member.name: member for member in files}
    for number, member in enumerate(files):
        if member.name in links:
            target = member.name
            for _ in range(MAX_LINKS):
                target = links.get(target, target)
            if target in links or target not in by_name:
                raise UserError(
                    f"{member} is a link to '{links[member.name]}', no file of the archive. Pack it anew with the file "
                    "in place of the link."
                )
            files[number] = by_name[target]._replace(name=member.name)
    return files


def read(member: Member) -> bytes:
    """All bytes of a file. Raises BadSample: too large (refused before it is read or inflated), or damaged. UserError:
    in a compressed tar."""
    if max(member.size, member.stored) > MAX_READ:
        raise BadSample(f"{member} claims {max(member.size, member.stored)} bytes, more than any image. Remove it.")
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
            # No more than the directory promises: a small file may inflate to fill the memory.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(member.size, 1))
    except (OSError, zlib.error) as error:
        raise BadSample(f"{member} cannot be read ({error}). Fetch it again.") from error
    if len(data) != member.size or (member.kind in ("stored", "deflated") and zlib.crc32(data) != member.crc):
        raise BadSample(f"{member} is cut short or damaged. Fetch it again.")
    return data


@contextmanager
def stream(member: Member, most: int = MAX_STREAM) -> Iterator[IO[bytes]]:
    """Open a large file of at most ``most`` bytes, which is read as needed, or at once from a tar. Raises UserError:
    too large, or damaged."""
    if max(member.size, member.stored) > most:
        raise UserError(
            f"{member} claims {max(member.size, member.stored)} bytes, more than any published batch. Fetch it again."
        )
    try:
        if member.kind in ("file", "gzip"):
            opener: Any = gzip.open if member.kind == "gzip" else open
            with opener(member.path, "rb") as file:
                yield file
        elif member.kind in ("stored", "deflated"):
            with zipfile.ZipFile(member.path) as archive, archive.open(_info(archive, member)) as file:
                yield file
        else:
            with tar.opened(member.path) as data:
                content = data[member.offset : member.offset + member.size]
            if len(content) < member.size:
                raise EOFError("cut short")
            yield io.BytesIO(content)
    except BROKEN as error:
        raise UserError(f"{member} cannot be read ({error}). Fetch it again.") from error


def _info(archive: zipfile.ZipFile, member: Member) -> zipfile.ZipInfo:
    for info in archive.infolist():
        if info.header_offset == member.offset:
            return info
    raise UserError(f"{member} has disappeared. Run the command again.")
