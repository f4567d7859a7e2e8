"""The header scan finds what tarfile finds, and tells a damaged archive from a whole one."""

import io
import mmap
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import write_tar

from fdtrain.data import tar


def scan(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [(name.decode(), data[offset : offset + size]) for name, offset, size in tar.members(data)]


NAMES = st.text("abc.-_/ü", min_size=1, max_size=150).filter(lambda name: name.strip("/.") == name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_finds_every_member(tmp_path, members, format):
    write_tar(tmp_path / "a.tar", members, format)
    assert scan(tmp_path / "a.tar") == members


def test_a_member_that_looks_like_a_header_is_not_one(tmp_path):
    write_tar(tmp_path / "inner.tar", [("inside.npy", b"x" * 700)])
    outer = [("a.bin", (tmp_path / "inner.tar").read_bytes()), ("b.npy", b"y")]
    write_tar(tmp_path / "outer.tar", outer)
    assert scan(tmp_path / "outer.tar") == outer


def test_names_over_100_bytes_in_ustar(tmp_path):
    members = [("d" * 90 + "/" + "n" * 60 + ".npy", b"x"), ("e.npy", b"y")]
    write_tar(tmp_path / "a.tar", members)
    assert scan(tmp_path / "a.tar") == members


def test_links_and_folders_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.npy", tarfile.SYMTYPE), ("h.npy", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a.npy")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert scan(tmp_path / "a.tar") == [("a.npy", b"abc")]


@pytest.mark.parametrize("length", [1, 511, 512, 1000, 1024, 2047])
def test_cut_short(tmp_path, length):
    write_tar(tmp_path / "a.tar", [("a.npy", b"x" * 600), ("b.npy", b"y" * 100)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:length])
    with pytest.raises(ValueError, match="cut short"):
        scan(tmp_path / "a.tar")


@pytest.mark.parametrize("noise", [b"\x00" * 100 + b"x" * 924, b"not a tar file " * 100])
def test_not_a_tar(tmp_path, noise):
    (tmp_path / "a.tar").write_bytes(noise)
    with pytest.raises((ValueError, tarfile.TarError)):
        scan(tmp_path / "a.tar")


def test_a_size_beyond_the_file(tmp_path):
    """A base-256 size of 2**60 bytes, left to tarfile, is still checked against the file."""
    info = tarfile.TarInfo("a.npy")
    info.size = 2**60
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises((ValueError, tarfile.TarError)):
        scan(tmp_path / "a.tar")
