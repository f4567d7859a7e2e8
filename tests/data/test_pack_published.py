"""Data sets as they are published, packed and compared image by image; and broken, mistaken or malicious files: one
clear line, and nothing of theirs runs or fills the memory."""

import io
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import published as pub
import pytest
from packed import npy, refused, zip_bytes
from PIL import Image
from published import by_content, same, unpacked

from fdtrain.data.dataset import read_description
from fdtrain.data.pack import pack
from fdtrain.data.sources import archive, pickled
from fdtrain.data.sources.batches import BatchFormat, batch_part
from fdtrain.data.sources.published import celeba64, cifar10, cifar100, imagenet32_old, imagenet_new
from fdtrain.data.sources.source import Part

NUMBERS = [str(i) for i in range(1, 1001)]


@pytest.mark.parametrize(
    ("name", "publish", "source", "classes"),
    [
        ("cifar10", lambda f: pub.cifar10(f / "c.tar.gz"), lambda paths: cifar10(*paths), pub.CIFAR_CLASSES),
        ("cifar100", lambda f: pub.cifar100(f / "c.tar.gz"), lambda paths: cifar100(*paths), pub.FINE_CLASSES),
        ("imagenet32-new", lambda f: pub.imagenet_new(f, 32, npz=True), lambda paths: imagenet_new(paths, 32), NUMBERS),
        ("imagenet64-new", lambda f: pub.imagenet_new(f, 64), lambda paths: imagenet_new(paths, 64), NUMBERS),
    ],
)
def test_batches(tmp_path, name, publish, source, classes):
    """In their archives, or unpacked."""
    (tmp_path / "in").mkdir()
    splits = publish(tmp_path / "in")
    archives = sorted((tmp_path / "in").iterdir())
    description = pack(source(archives), tmp_path / "out", "png", shard_images=3)
    for split, (expected, labels) in splits.items():
        same(tmp_path / "out", split, expected, labels)
    for path in archives:
        shutil.unpack_archive(path, tmp_path / "unpacked")
    assert pack(source([tmp_path / "unpacked"]), tmp_path / "folder", "png", 3).splits == description.splits
    assert description == read_description(tmp_path / "out")
    assert (description.name, description.classes) == (name, classes)
    assert description.source.startswith(", ".join(path.name for path in archives))
    assert (description.shape[1:], description.encoding, description.levels) == (expected.shape[1:3], "png", 256)


def test_imagenet32_old(tmp_path):
    splits = pub.imagenet32_old(tmp_path)
    source = imagenet32_old(tmp_path / "train_32x32.tar", tmp_path / "valid_32x32.tar", share=5)
    description = pack(source, tmp_path / "out", shard_images=5)
    for split, expected in splits.items():
        same(tmp_path / "out", split, expected, None)
    assert (description.name, description.classes) == ("imagenet32-old", [])


@pytest.mark.parametrize("listed", [False, True])
def test_celeba64(tmp_path, listed):
    files = pub.celeba(tmp_path / "img_align_celeba.zip", [1, 162770, 162771, 182637, 182638, 202599])
    splits = {"train": [1, 162770], "valid": [162771, 182637], "test": [182638, 202599]}
    if listed:
        splits = {"train": [1], "valid": [162770, 162771], "test": [182637, 182638, 202599]}
        lines = [f"{n:06d}.jpg {i}" for i, numbers in enumerate(splits.values()) for n in numbers]
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    description = pack(celeba64(tmp_path / "img_align_celeba.zip", 10), tmp_path / "out")
    for split, numbers in splits.items():
        pictures = [Image.open(io.BytesIO(files[number])) for number in numbers]
        # 218 - 140 = 2 x 39 rows and 178 - 140 = 2 x 19 columns go.
        cropped = [picture.crop((19, 39, 159, 179)) for picture in pictures]
        expected = np.stack([np.asarray(p.resize((64, 64), Image.Resampling.BILINEAR)) for p in cropped])
        same(tmp_path / "out", split, expected, None)
    assert "140x140" in description.source
    assert ("list_eval_partition.txt" in description.source) == listed


def test_digits_are_what_they_were(digits):
    from sklearn.datasets import load_digits

    description = read_description(digits)
    found = by_content(*unpacked(digits, "train")) | by_content(*unpacked(digits, "test"))
    data = load_digits()
    assert found == by_content(data.images.astype(np.uint8), data.target.tolist())
    # The split and its order are part of every digits figure ever reported.
    assert description.splits["train"][0].sha256.startswith("36d6737138746155")
    assert description.splits["test"][-1].sha256.startswith("bc1b7cc8bb3d0923")


class Evil:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def load(path: Path, data: bytes):
    path.write_bytes(data)
    return pickled.load(archive.single(path))


def evils(mark: Path) -> list[object]:
    write = f"open({str(mark)!r}, 'w')"
    return [
        Evil(exec, write),
        Evil(open, str(mark), "w"),
        Evil(os.system, f"touch {mark}"),
        Evil(__import__, "antigravity"),
        Evil(np.memmap, str(mark), np.uint8, "w+", 0, (4,)),
    ]


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("number", range(5))
def test_a_malicious_pickle_does_not_run(tmp_path, number, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps({"data": evils(mark)[number], "labels": []}, protocol)
    if number == 0:
        pickle.loads(data)
        # So pickle itself leaves it.
        mark.unlink()
    with refused(r"some.pkl is not a plain pickle of arrays: it asks for .*Do not trust it"):
        load(tmp_path / "some.pkl", data)
    assert not mark.exists()
    assert "antigravity" not in sys.modules


OBJECTS = [
    np.array([{"a": 1}], dtype=object),
    np.zeros(2, dtype=[("a", "u1"), ("b", "f4")]),
    np.zeros((3, 4), order="F"),
    np.ma.zeros(3),
    np.float64(1.0),
    {1, 2},
    OSError(),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_only_arrays_of_numbers(tmp_path, value):
    with refused(r"some\.pkl"):
        load(tmp_path / "some.pkl", pub.python3_pickle({"data": value}))


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "<f8", "?"])
def test_arrays_come_out_as_they_went_in(tmp_path, protocol, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    found = load(tmp_path / "some.pkl", pub.python3_pickle({"data": array, "labels": [1, 300, 2**40]}, protocol))
    np.testing.assert_array_equal(found["data"], array)
    assert found["data"].dtype == array.dtype
    assert found["labels"] == [1, 300, 2**40]


def program(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")

PROGRAMS = {
    "a bare array of a terabyte": program(NDARRAY, HUGE, b"\x85\x85R"),
    "an array of a terabyte from one byte": program(
        RECONSTRUCT, NDARRAY, b"K\x00\x85U\x01b\x87R", b"(K\x01", HUGE, b"\x85", DTYPE, b"\x89U\x01xtb"
    ),
    "text in a codec that decompresses": program(b"c_codecs\nencode\n", b"X\x01\x00\x00\x00xU\x04zlib\x86R"),
    "an array without its state": program(b"}U\x04data", RECONSTRUCT, NDARRAY, b"K\x00\x85U\x01b\x87Rs"),
    "a dtype of objects": program(b"cnumpy\ndtype\nU\x01O\x85R"),
    "a persistent object": program(b"K\x01Q"),
    "an extension code": program(b"\x82\x01"),
    "a terabyte of bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x",
    "a slot of the memo far away": program(b"K\x01r" + struct.pack("<I", 2**31 - 1)),
    "cut short": pub.python3_pickle({"data": np.zeros(100)})[:-50],
    "a list": pickle.dumps([1]),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_hostile_pickle_programs(tmp_path, what):
    path = tmp_path / "data_batch_1"
    path.write_bytes(PROGRAMS[what])
    with refused("data_batch_1"):
        batch_part(archive.members(tmp_path)[0], BatchFormat(32, 0, 10)).count()


def batch(folder: Path, content: dict) -> Part:
    (folder / "data_batch_1").write_bytes(pub.python3_pickle(content))
    return batch_part(archive.members(folder)[0], BatchFormat(32, 1, 10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [1]}, "has no 'data' and 'labels'"),
        ({"data": np.zeros((1, 12288), np.uint8), "labels": [1]}, r"data of shape \(1, 12288\)"),
        ({"data": np.zeros((1, 3072)), "labels": [1]}, "type float64"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "not 2 whole numbers from 1 to 10"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 5]}, "not 2 whole numbers from 1 to 10"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [1.5]}, "labels that are not 1 whole"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [[1], [2, 3]]}, "labels that are not 1 whole"),
    ],
)
def test_batches_that_are_not_as_published(tmp_path, content, message):
    with refused(message):
        batch(tmp_path, content).open()


def test_npz_that_lies(tmp_path):
    mark = tmp_path / "mark"
    objects = np.array([evils(mark)[0]], dtype=object)
    labels = npy(np.ones(1, np.int64))
    huge = npy(np.zeros((1, 3072), np.uint8)).replace(b"(1, 3072), ", b"(9999999, 99999999999), ", 1)
    (tmp_path / "in").mkdir()
    for data in (npy(objects), npy(np.zeros((1, 3072), np.uint8))[:-5], huge, b"", b"hello"):
        (tmp_path / "in" / "val_data.npz").write_bytes(zip_bytes([("data.npy", data), ("labels.npy", labels)]))
        with refused(r"val_data.npz is not an npz of plain arrays"):
            batch_part(archive.members(tmp_path / "in")[0], BatchFormat(32, 1, 10)).count()
    assert not mark.exists()


def test_imagenet_versions_are_not_mistaken(tmp_path):
    pub.imagenet32_old(tmp_path)
    with refused("the old version, packed by imagenet32-old"):
        imagenet_new([tmp_path / "train_32x32.tar", tmp_path / "valid_32x32.tar"], 32)
    pub.imagenet_new(tmp_path, 32)
    zips = [tmp_path / "Imagenet32_train.zip", tmp_path / "Imagenet32_val.zip"]
    with refused("holds no images"):
        imagenet32_old(*zips, share=10)
    with refused(": no val_data"):
        imagenet_new(zips[:1], 32)
    with refused("are the same batch"):
        imagenet_new([*zips, zips[1]], 32)
    with refused("Is it the published file of this size"):
        pack(imagenet_new(zips, 64), tmp_path / "out")


def test_archives_cut_short(tmp_path):
    pub.cifar10(tmp_path / "c.tar.gz")
    pub.celeba(tmp_path / "c.zip", [1, 2])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("c.tar.gz", "c.zip", "empty"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with refused(rf"{name} cannot be read as a folder, zip or tar"):
            archive.members(path)
    with refused("no file or folder"):
        archive.members(tmp_path / "absent")


def test_zip_that_inflates_beyond_its_promise(tmp_path):
    """A member that claims 100 bytes gives no more, whatever is compressed in it."""
    path = pub.write_zip(tmp_path / "in.zip", {"a.png": bytes(5 << 20)})
    content = path.read_bytes().replace(struct.pack("<I", 5 << 20), struct.pack("<I", 100))
    path.write_bytes(content)
    member = archive.members(path)[0]
    assert member.size == 100
    with refused("cut short or damaged"):
        archive.read(member)
    with refused("more than any image"):
        archive.read(member._replace(size=archive.MAX_READ + 1))
    with (
        refused("more than any published batch"),
        archive.stream(member._replace(size=archive.MAX_STREAM + 1)),
    ):
        pass


def test_encrypted_and_compressed_archives(tmp_path):
    path = pub.write_zip(tmp_path / "in.zip", {"a.png": b"x"}, zipfile.ZIP_BZIP2)
    with refused("rare compression"):
        archive.members(path)
    path = pub.write_tar(tmp_path / "in.tar.gz", {"a.png": b"x"}, "w:gz")
    with refused("compressed tar"):
        archive.read(archive.members(path)[0])


def test_celeba_that_is_not_as_published(tmp_path):
    pub.write_zip(tmp_path / "c.zip", {"img_align_celeba/000001.jpg": pub.encoded(pub.random_images(1, 64)[0])})
    with refused("has 64x64 pixels, expected 178x218"):
        pack(celeba64(tmp_path / "c.zip", 10), tmp_path / "out")
    pub.write_zip(tmp_path / "d.zip", {"img_align_celeba/first.jpg": b""})
    with refused("not named by a number"):
        celeba64(tmp_path / "d.zip", 10)
    (tmp_path / "list_eval_partition.txt").write_text("000002.jpg 0\n")
    with refused(r"000001.jpg' is not in list_eval_partition.txt"):
        celeba64(tmp_path / "c.zip", 10)
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 3\n")
    with refused(r"partition\.txt: expected lines of"):
        celeba64(tmp_path / "c.zip", 10)
