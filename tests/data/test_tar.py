"""The header scan finds what tarfile finds, and tells a damaged archive from a whole one."""

import mmap
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import write_tar
from tars import END, block, extended, header, record

from fdtrain.data import tar


def scan(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [(e.name.decode(), data[e.offset : e.offset + e.size]) for e in tar.scan(data) if e.kind == tar.FILE]


NAMES = st.text("abc.-_/ü", min_size=1, max_size=150).filter(lambda name: name.strip("/.") == name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_finds_every_member(tmp_path, members, format):
    write_tar(tmp_path / "a.tar", members, format)
    assert scan(tmp_path / "a.tar") == members


@pytest.mark.parametrize("length", [1, 511, 512, 1000, 1024, 2047])
def test_cut_short(tmp_path, length):
    write_tar(tmp_path / "a.tar", [("a.npy", b"x" * 600), ("b.npy", b"y" * 100)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:length])
    with pytest.raises(tar.BadTar, match="cut short"):
        scan(tmp_path / "a.tar")


FILE, ZERO = header() + block(b"abc"), b"0" * 11 + b"\0"

HOSTILE = {
    "no tar": b"not a tar file " * 100,
    "a negative size, which led tarfile in circles": extended(record(b"size", b"-1536")) + FILE,
    "a size of 2**80": extended(record(b"size", str(2**80).encode())) + FILE,
    "a size of ten thousand digits": extended(record(b"size", b"9" * 10_000)) + FILE,
    "a negative size in base 256": header(size=b"\xff" * 12) + block(b"abc"),
    "a negative size in octal": header(size=b"-0000000003\0") + block(b"abc"),
    "two sizes in two headers": extended(record(b"size", b"3")) + extended(record(b"size", b"3"), b"X") + FILE,
    "two sizes": extended(record(b"size", b"2")) + FILE,
    "a record that takes tarfile's regular expression minutes": extended(b"1" * 60_000) + FILE,
    "a record of no length": extended(b"0 path=b.npy\n") + FILE,
    "a record longer than the header": extended(b"99 path=b.npy\n") + FILE,
    "a record without an end": extended(b"13 path=b.npy") + FILE,
    "two names in one header": extended(record(b"path", b"b.npy") + record(b"path", b"c.npy")) + FILE,
    "two names in two headers": extended(b"b.npy\0", b"L") + extended(record(b"path", b"c.npy")) + FILE,
    "a name with a NUL": extended(record(b"path", b"b\0.npy")) + FILE,
    "a chain of names": extended(b"b.npy\0", b"L") * 5000 + FILE,
    "a chain of alternating kinds": (extended(b"b\0", b"L") + extended(b"b\0", b"K")) * 5000 + FILE,
    "an extended header of 8 GB": header(b"pax", b"7" * 11 + b"\0", b"x") + FILE,
    "an extended header of 1 MB": extended(record(b"comment", b"x" * 2**20)) + FILE,
    "an extended header without a member": extended(record(b"path", b"b.npy")),
    "a global name": extended(record(b"path", b"b.npy"), b"g") + FILE,
    "a sparse file of pax": extended(record(b"GNU.sparse.size", b"9999999999")) + FILE,
    "an unknown type": header(kind=b"?") + block(b"abc"),
    "a link with data": header(kind=b"1") + block(b"abc"),
    "a folder's name": header(b"b.npy/", kind=b"7") + block(b"abc"),
    "a prefix in GNU's format": header(magic=b"ustar  \0", prefix=b"p") + block(b"abc"),
    "a wrong sum": header().replace(b"a.npy", b"b.npy") + block(b"abc"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("before", [b"", FILE], ids=["first", "later"])
def test_hostile(tmp_path, content, before):
    """Refused, at once, and without much memory."""
    (tmp_path / "a.tar").write_bytes(before + content + END)
    tracemalloc.start()
    with pytest.raises(tar.BadTar) as error:
        scan(tmp_path / "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(str(error.value)) < 100


HARMLESS = {
    "a folder and links": (b"".join(header(b"d", ZERO, kind) for kind in (b"5", b"2", b"1")) + FILE, ["a.npy"]),
    "long name": (extended(b"d/b.npy\0", b"L") + FILE, ["d/b.npy"]),
    "long name after a long link": (extended(b"x\0", b"K") + extended(b"b.npy\0", b"L") + FILE, ["b.npy"]),
    "pax": (extended(record(b"mtime", b"1.5") + record(b"path", b"b.npy")) + FILE, ["b.npy"]),
    "Solaris": (extended(record(b"path", b"b.npy"), b"X") + FILE, ["b.npy"]),
    "pax, of a large file": (extended(record(b"size", b"3")) + header(size=ZERO) + block(b"abc"), ["a.npy"]),
    "comment of git": (extended(record(b"comment", b"0" * 40), b"g") + FILE, ["a.npy"]),
    "base 256": (header(size=b"\x80" + (3).to_bytes(11, "big")) + block(b"abc"), ["a.npy"]),
    "seventh edition": (header(magic=b"", kind=b"\0") + block(b"abc"), ["a.npy"]),
    "seventh edition's folder": (header(b"d/", ZERO, b"\0", b"") + FILE, ["a.npy"]),
    "GNU": (header(magic=b"ustar  \0") + block(b"abc"), ["a.npy"]),
    "prefix": (header(prefix=b"p/q") + block(b"abc"), ["p/q/a.npy"]),
    "contiguous": (header(kind=b"7") + block(b"abc"), ["a.npy"]),
    "bytes behind the name": (header(b"a.npy\0x") + block(b"abc"), ["a.npy"]),
    "spaces before the size": (header(size=b"          3\0") + block(b"abc"), ["a.npy"]),
}


@pytest.mark.parametrize(("content", "names"), HARMLESS.values(), ids=HARMLESS)
def test_every_format_that_is_in_use(tmp_path, content, names):
    (tmp_path / "a.tar").write_bytes(FILE + content + FILE + END)
    assert scan(tmp_path / "a.tar") == [(name, b"abc") for name in ("a.npy", *names, "a.npy")]
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(m.name, archive.extractfile(m).read()) for m in archive if m.isreg()] == scan(tmp_path / "a.tar")
