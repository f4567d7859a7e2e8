"""Sources that are broken, mistaken or malicious: one clear line, and nothing of theirs runs or fills the memory."""

import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import published as pub
import pytest
from packed import npy, raw_png, zip_bytes
from test_pack_sources import image_folder

from fdtrain.data.pack import pack
from fdtrain.data.sources import archive, pickled
from fdtrain.data.sources.batches import BatchFormat, batch_part
from fdtrain.data.sources.images import images
from fdtrain.data.sources.picture import decode, exactly
from fdtrain.data.sources.published import celeba64, cifar10, imagenet32_old, imagenet_new
from fdtrain.data.sources.source import Part
from fdtrain.errors import UserError


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
    with pytest.raises(UserError, match=r"some.pkl is not a plain pickle of arrays: it asks for .*Do not trust it"):
        load(tmp_path / "some.pkl", data)
    assert not mark.exists()
    assert "antigravity" not in sys.modules


def test_a_malicious_archive_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(evils(mark)[0]))
    # It would be left by pickle itself.
    mark.unlink()
    pub.cifar10(tmp_path / "cifar-10-python.tar.gz")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps(evils(mark)[0])
    pub.write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    with pytest.raises(UserError, match=r"data_batch_3' is not a plain pickle of arrays: it asks for 'builtins.exec'"):
        pack(cifar10(tmp_path / "cifar-10-python.tar.gz"), tmp_path / "out")
    assert not mark.exists()


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
    with pytest.raises(UserError, match=r"some\.pkl"):
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
    with pytest.raises(UserError, match="data_batch_1"):
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
    with pytest.raises(UserError, match=message):
        batch(tmp_path, content).open()


def test_npz_that_lies(tmp_path):
    mark = tmp_path / "mark"
    objects = np.array([evils(mark)[0]], dtype=object)
    labels = npy(np.ones(1, np.int64))
    huge = npy(np.zeros((1, 3072), np.uint8)).replace(b"(1, 3072), ", b"(9999999, 99999999999), ", 1)
    (tmp_path / "in").mkdir()
    for data in (npy(objects), npy(np.zeros((1, 3072), np.uint8))[:-5], huge, b"", b"hello"):
        (tmp_path / "in" / "val_data.npz").write_bytes(zip_bytes([("data.npy", data), ("labels.npy", labels)]))
        with pytest.raises(UserError, match=r"val_data.npz is not an npz of plain arrays"):
            batch_part(archive.members(tmp_path / "in")[0], BatchFormat(32, 1, 10)).count()
    assert not mark.exists()


def test_imagenet_versions_are_not_mistaken(tmp_path):
    pub.imagenet32_old(tmp_path)
    with pytest.raises(UserError, match="the old version, packed by imagenet32-old"):
        imagenet_new([tmp_path / "train_32x32.tar", tmp_path / "valid_32x32.tar"], 32)
    pub.imagenet_new(tmp_path, 32)
    zips = [tmp_path / "Imagenet32_train.zip", tmp_path / "Imagenet32_val.zip"]
    with pytest.raises(UserError, match="holds no images"):
        imagenet32_old(*zips, share=10)
    with pytest.raises(UserError, match=": no val_data"):
        imagenet_new(zips[:1], 32)
    with pytest.raises(UserError, match="are the same batch"):
        imagenet_new([*zips, zips[1]], 32)
    with pytest.raises(UserError, match="Is it the published file of this size"):
        pack(imagenet_new(zips, 64), tmp_path / "out")


def test_archives_cut_short(tmp_path):
    pub.cifar10(tmp_path / "c.tar.gz")
    pub.celeba(tmp_path / "c.zip", [1, 2])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("c.tar.gz", "c.zip", "empty"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(UserError, match=rf"{name} cannot be read as a folder, zip or tar"):
            archive.members(path)
    with pytest.raises(UserError, match="no file or folder"):
        archive.members(tmp_path / "absent")


def test_zip_that_inflates_beyond_its_promise(tmp_path):
    """A member that claims 100 bytes gives no more, whatever is compressed in it."""
    path = pub.write_zip(tmp_path / "in.zip", {"a.png": bytes(50 << 20)})
    content = path.read_bytes().replace(struct.pack("<I", 50 << 20), struct.pack("<I", 100))
    path.write_bytes(content)
    member = archive.members(path)[0]
    assert member.size == 100
    with pytest.raises(UserError, match="cut short or damaged"):
        archive.read(member)
    with pytest.raises(UserError, match="more than any image"):
        archive.read(member._replace(size=archive.MAX_READ + 1))
    with (
        pytest.raises(UserError, match="more than any published batch"),
        archive.stream(member._replace(size=archive.MAX_STREAM + 1)),
    ):
        pass


def test_encrypted_and_compressed_archives(tmp_path):
    path = pub.write_zip(tmp_path / "in.zip", {"a.png": b"x"}, zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="rare compression"):
        archive.members(path)
    path = pub.write_tar(tmp_path / "in.tar.gz", {"a.png": b"x"}, "w:gz")
    with pytest.raises(UserError, match="compressed tar"):
        archive.read(archive.members(path)[0])


@pytest.mark.parametrize(("side", "resize"), [(8193, None), (60_000, 64)])
def test_absurd_sizes_are_refused_by_the_header(tmp_path, side, resize):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bomb.png").write_bytes(raw_png(side, side, (b"IDAT", zlib.compress(bytes(1 << 20)))))
    with pytest.raises(UserError, match=r"bomb.png is .*pixels, the limit is 67108864"):
        pack(images(tmp_path / "in", None, 0, "some", resize, None, 10), tmp_path / "out")


PIXELS = np.zeros((8, 8), np.uint8)


A, B = pub.encoded(PIXELS[:, :, None]), pub.encoded(PIXELS[:4, :4, None])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b"hello"}, "holds no images"),
        ({"a.png": A, "b.png": B}, r"pixels, expected .*--size"),
        ({"a.png": pub.encoded(PIXELS[:4, :, None])}, "not square. Ask for a square with --size"),
        ({"cat/a.png": A, "dog/b.png": A, "c.png": A}, "'c.png' lies beside the class folders"),
        ({"a.png": A, "dataset.json": b"{"}, "is not of the form"),
        ({"a.png": A, "dataset.json": b'{"labels": [1]}'}, "is not of the form"),
        ({"a.png": A, "dataset.json": b'{"labels": [["b.png", 0]]}'}, "no label for 'a.png'"),
        ({"a.png": A, "dataset.json": b'{"labels": [["a.png", -1]]}'}, "is not of the form"),
        ({"a.png": A, "dataset.json": b'{"labels": [["a.png", 1000000000000]]}'}, "at most 1048576 classes"),
    ],
)
def test_folders_of_images_that_cannot_be_packed(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        pack(images(image_folder(tmp_path / "in", files), None, 0, "some", None, None, 10), tmp_path / "out")


def test_held_out_images_that_do_not_fit(tmp_path):
    train = image_folder(tmp_path / "train", {"cat/a.png": A, "dog/b.png": A})
    for number, (files, message) in enumerate(
        (
            ({"a.png": A}, "Label both alike"),
            ({"cat/a.png": A, "emu/b.png": A}, r"classes that the train images lack: emu"),
            ({"x/a.png": A, "dataset.json": b'{"labels": [["x/a.png", 0]]}'}, "Label both alike"),
        )
    ):
        test = image_folder(tmp_path / f"test{number}", files)
        with pytest.raises(UserError, match=message):
            images(train, test, 0, "some", None, None, 10)
    with pytest.raises(UserError, match=r"holds 2 images: 2 cannot be held out. Hold out about 1\."):
        images(train, None, 2, "some", None, None, 10)


def test_celeba_that_is_not_as_published(tmp_path):
    pub.write_zip(tmp_path / "c.zip", {"img_align_celeba/000001.jpg": pub.encoded(pub.random_images(1, 64)[0])})
    with pytest.raises(UserError, match="has 64x64 pixels, expected 178x218"):
        pack(celeba64(tmp_path / "c.zip", 10), tmp_path / "out")
    pub.write_zip(tmp_path / "d.zip", {"img_align_celeba/first.jpg": b""})
    with pytest.raises(UserError, match="not named by a number"):
        celeba64(tmp_path / "d.zip", 10)
    (tmp_path / "list_eval_partition.txt").write_text("000002.jpg 0\n")
    with pytest.raises(UserError, match=r"000001.jpg' is not in list_eval_partition.txt"):
        celeba64(tmp_path / "c.zip", 10)
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 3\n")
    with pytest.raises(UserError, match=r"partition\.txt: expected lines of"):
        celeba64(tmp_path / "c.zip", 10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "pickle", "npz"])
def test_any_damage_is_one_line(tmp_path, kind):
    """Bytes changed, lost or cut off anywhere: the source reads all the same, or one line says that it does not.
    Archives and PNG: tests/hostile."""
    picture = pub.random_images(1, 16)[0]
    content = {"data": pub.planes(picture[None]), "labels": [1]}
    whole = {
        "pickle": lambda: pub.python3_pickle(content),
        "npz": lambda: zip_bytes((f"{key}.npy", npy(np.asarray(value))) for key, value in content.items()),
    }.get(kind, lambda: pub.encoded(picture, kind))()
    rng, messages, path = np.random.default_rng(0), [], tmp_path / "data"
    for _ in range(200):
        data = bytearray(whole)
        # Headers decide most, so half of the damage is there.
        place = int(rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 200)))
        if rng.random() < 0.8:
            data[place : place + int(rng.integers(1, 4))] = rng.bytes(int(rng.integers(0, 4)))
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            if kind.isupper():
                decode(bytes(data), "x", exactly(16, 3))
            else:
                [member] = archive.members(tmp_path)
                batch_part(member._replace(name=f"x.{kind}"), BatchFormat(16, 1, 10)).count()
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)
