"""Shards from anyone: right ones are read exactly, the header scan finds what tarfile finds, and wrong ones say what is
wrong, at once and without much memory."""

import io
import mmap
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import describe, image, npy, npy_header, number, pack, picture, raw_png, refused, sample, write_tar
from PIL import Image
from tars import END, block, extended, header, record

from fdtrain.data import tar
from fdtrain.data.dataset import write_description
from fdtrain.data.location import locate
from fdtrain.data.shards import ShardReader


def reader(folder, **options) -> ShardReader:
    data = locate(folder)
    return ShardReader(data.split("train"), data.description, **options)


def read_one(folder, members, **changes) -> tuple[np.ndarray, int] | str:
    """The only sample of a shard of these members; what is wrong with it, if something is."""
    folder.mkdir(exist_ok=True)
    write_tar(folder / "train-000000.tar", members)
    describe(folder, {"train": {"train-000000.tar": 1}}, **changes)
    images, labels, broken = reader(folder).read([(0, 0)])
    return broken[0] if broken else (images[0], int(labels[0]))


@pytest.mark.parametrize("encoding", ["npy", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_reads_any_sample_in_any_order(tmp_path, encoding, channels):
    pack(tmp_path / "set", (5, 7, 4), encoding, channels=channels)
    rows = [(2, 3), (0, 0), (1, 6), (0, 0), (1, 1)]
    images, labels, broken = reader(tmp_path / "set", keep_open=1).read(rows)
    numbers = [(0, 5, 12)[shard] + index for shard, index in rows]
    assert images.shape == (5, channels, 4, 4)
    assert images.flags.c_contiguous
    for pixels, label, n in zip(images, labels, numbers, strict=True):
        np.testing.assert_array_equal(pixels, image(n, channels=channels).transpose(2, 0, 1))
        assert label == n % 10
    assert not broken


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], -1),
        ([("a.json", b'{"label": 4, "x": []}')], 4),
        ([("a.json", b'{"label": 4}'), ("a.cls", b"5")], 5),
        ([("a.cls", b"5"), ("a.json", b'{"label": 4}')], 5),
    ],
)
def test_jpeg_and_labels(tmp_path, labels, expected):
    flat = np.full((4, 4, 3), 77, np.uint8)
    pixels, label = read_one(tmp_path / "set", [("a.jpg", picture(flat, "jpeg", quality=100)), *labels])
    assert abs(pixels.astype(int) - 77).max() <= 2
    assert label == expected


def test_arrays_of_different_headers_and_grey_without_a_channel_axis(tmp_path):
    """Other numpy versions pad the header otherwise; a cached header must not stand in for a new one."""
    (tmp_path / "set").mkdir()
    padded = npy(image(1, channels=1))
    header = padded[10:128].rstrip() + b" " * 70 + b"\n"
    longer = padded[:8] + struct.pack("<H", len(header)) + header + padded[128:]
    members = [("0.npy", npy(image(0, channels=1))), ("1.npy", longer), ("2.npy", npy(image(2, channels=1)[:, :, 0]))]
    write_tar(tmp_path / "set" / "train-000000.tar", members)
    describe(tmp_path / "set", {"train": {"train-000000.tar": 3}}, channels=1)
    images, _, broken = reader(tmp_path / "set").read([(0, 0), (0, 1), (0, 2), (0, 0), (0, 1)])
    assert not broken
    assert [number(x) for x in images] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([*sample(0), *sample(0)], "two members 'npy' of one key, '000000'"),
        ([("0.cls", b"1"), ("0.npy", npy(image(0))), ("0.cls", b"2")], "two members 'cls' of"),
        ([("0.npy", npy(image(0))), ("0.png", picture(image(1)))], "two images of one key"),
        ([("d/0.npy", npy(image(0))), ("d/0.NPY", npy(image(1)))], "two members 'npy' of one key, 'd/0'"),
        ([("\x1b[2J\n.npy", b""), ("\x1b[2J\n.npy", b"")], "whose name is no sample's"),
    ],
)
def test_keys_that_come_twice_in_a_row(tmp_path, members, complaint):
    """One sample with the one's image and the other's label, if they were taken together."""
    with refused(complaint) as error:
        read_one(tmp_path / "set", members)
    assert "train-000000.tar" in str(error.value)


@pytest.mark.parametrize("size", [0, 2048])
def test_a_fifo_in_place_of_a_shard(tmp_path, size):
    """Refused where it is opened, and before the run."""
    description = pack(tmp_path / "set", (2,))
    path = tmp_path / "set" / "train-000000.tar"
    path.unlink()
    os.mkfifo(path)
    [shard] = description.splits["train"]
    write_description(tmp_path / "set", description, {"train": [shard.model_copy(update={"bytes": size})]})
    data = locate(tmp_path / "set")
    with refused(f"no file of {size} bytes"):
        ShardReader(data.split("train"), data.description).read([(0, 0)])
    with refused(f"no file of {size} bytes"):
        data.check(["train"])


def webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + len(body[:10]).to_bytes(4, "little") + body
    return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


JSON_LABELS = b'{"label": true}', b"[" * 500_000, b'{"label": 99999999999999999999}'
SHAPE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%s)}\n"
LARGE_WEBP = picture(np.zeros((3000, 3000, 3), np.uint8), "webp")[12:]
NOISE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
ZEROS = zlib.compress(b"\0" * 200_000_000, 9)
RIGHT = zlib.compress(b"\0" * (4 * 13))


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([("0.png", raw_png(4, 4, (b"zTXt", b"a\0\0" + ZEROS), (b"IDAT", RIGHT)))], "not a picture"),
        ([("0.png", raw_png(60000, 60000, (b"IDAT", ZEROS)))], "60000x60000x3, expected 4x4x3"),
        ([("0.npy", npy_header(SHAPE % b"99999999, 9999, 3"))], "shape (99999999, 9999, 3) in 81 bytes"),
        ([("0.npy", npy_header(SHAPE % b"4, 4, 3", b"x" * 4000))], "bytes"),
        ([("0.npy", npy_header(b"(" * 3000))], "not an npy array"),
        ([("0.npy", npy(image(0).astype(np.float32)))], "array of float32, expected uint8"),
        ([("0.npy", npy(image(0)) + b"\0" * 10_000)], "at most"),
        ([("0.png", picture(image(0)) + b"\0" * 3_000_000)], "at most"),
        ([("0.webp", webp(b"VP8X", b"\x10\0\0\0" + b"\xff\x3f\0" * 2))], "16384x16384x3, expected 4x4x3"),
        ([("0.webp", webp(b"VP8L", b"\x2f" + b"\xff" * 24))], "16384x16384x3, expected 4x4x3"),
        ([("0.webp", webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"))], "16383x16383x3, expected 4x4x3"),
        # The chunk of the canvas says 4x4, that of the picture more.
        ([("0.webp", webp(b"VP8X", b"\0\0\0\0" + b"\x03\0\0" * 2 + LARGE_WEBP))], "not a picture"),
        ([("0.webp", webp(b"VP8X", b""))], "no WebP header"),
        ([("0.webp", picture(image(0), "webp")[:-10])], "not a picture"),
        ([("0.png", b"not a picture")], "not a picture"),
        ([("0.png", picture(image(0), "gif"))], "not a picture"),
        ([("0.png", picture(NOISE)[:-30])], "cannot be decoded"),
        ([("0.png", picture(image(0, channels=1)))], "picture of mode L, expected RGB"),
        ([("0.npy", npy(image(0, size=5)))], "5x5x3, expected 4x4x3"),
        ([("0.txt", b"no image"), ("0.cls", b"0")], "no image member"),
        ([("0.npy", npy(image(0))), ("0.cls", b"10")], "label 10, but the data set has 10 classes"),
        ([("0.npy", npy_header(b"{'\x1b[2J': '" + b"x" * 3000 + b"'}"))], "not an npy array"),
        *(([("0.npy", npy(image(0))), ("0.cls", label)], "label is not") for label in (b"-2", b"cat", b"9" * 5000)),
        *(([("0.npy", npy(image(0))), ("0.json", label)], "label is not") for label in JSON_LABELS),
    ],
)
def test_bad_sample_is_told_by_shard_and_key(tmp_path, members, complaint):
    tracemalloc.start()
    found = read_one(tmp_path / "set", members)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, str)
    assert "train-000000.tar, sample '0'" in found
    assert complaint in found
    assert found.isprintable()
    assert len(found) < 300 + len(str(tmp_path))
    assert most < 30_000_000


def test_palette_and_16_bit_pictures_are_not_taken_for_grey(tmp_path):
    for mode, told in (("P", "mode P"), ("I;16", "16 bits"), ("1", "mode 1")):
        file = io.BytesIO()
        Image.new(mode, (4, 4)).save(file, "png")
        assert told in read_one(tmp_path / "set", [("0.png", file.getvalue())], channels=1)


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)])
@pytest.mark.parametrize(
    "chunks",
    [
        lambda rows: [(b"IDAT", rows)],
        lambda rows: [(b"IDAT", rows[i : i + 7]) for i in range(0, len(rows), 7)],
        lambda rows: [(b"IDAT", b""), (b"IDAT", rows)],
        lambda rows: [(b"tEXt", b"Comment\0x"), (b"IDAT", rows)],
        lambda rows: [(b"IDAT", rows), (b"tEXt", b"Comment\0x")],
        lambda rows: [(b"gAMA", b"\0\0\xb1\x8f"), (b"IDAT", rows)],
    ],
    ids=["plain", "pieces", "empty piece", "text before", "text after", "gamma"],
)
def test_a_png_is_what_pillow_makes_of_it(tmp_path, channels, colour, chunks):
    pixels = np.random.default_rng(channels).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    data = raw_png(4, 4, *chunks(rows), colour=colour)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.asarray(opened).reshape(4, 4, channels), pixels)
    image, _ = read_one(tmp_path / "set", [("0.png", data)], channels=channels)
    assert np.array_equal(image.transpose(1, 2, 0), pixels)


def test_a_changed_bit_in_the_pixels_of_a_png_is_found(tmp_path):
    data = bytearray(picture(image(0)))
    for i in range(data.index(b"IDAT") + 4, len(data) - 16):
        data[i] ^= 1
        assert "cannot be decoded" in read_one(tmp_path / str(i), [("0.png", bytes(data))])
        data[i] ^= 1


def test_shard_cut_short_after_it_was_opened(tmp_path):
    pack(tmp_path / "set", (4,))
    open_reader = reader(tmp_path / "set")
    open_reader.read([(0, 0)])
    with (tmp_path / "set" / "train-000000.tar").open("r+b") as file:
        file.truncate(1000)
    broken = open_reader.read([(0, 3)])[2]
    assert "cut short" in broken[0]


def test_few_files_are_open(tmp_path):
    """Those that were read last; and none that is refused."""
    pack(tmp_path / "set", [2] * 50)
    open_reader, before = reader(tmp_path / "set", keep_open=3), len(os.listdir("/proc/self/fd"))
    for shard in range(50):
        open_reader.read([(shard, 0)])
    assert len(os.listdir("/proc/self/fd")) - before == 3
    (tmp_path / "set" / "train-000000.tar").write_bytes(b"x" * 5000)
    describe(tmp_path / "set", {"train": {"train-000000.tar": 2}})
    before = len(os.listdir("/proc/self/fd"))
    with refused(r"train-000000\.tar cannot be read as a tar file \(no tar header at byte 0\)"):
        reader(tmp_path / "set").read([(0, 0)])
    assert len(os.listdir("/proc/self/fd")) == before


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
