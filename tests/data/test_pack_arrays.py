"""Files of numpy, written as their authors write them: every image with its label, and no header is trusted."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import published as pub
import pytest
from packed import npy, zip_bytes
from test_pack_sources import same

from fdtrain.data.pack import pack
from fdtrain.data.sources import arrays as module
from fdtrain.data.sources.arrays import ArrayChoice, arrays
from fdtrain.errors import UserError

IMAGES = pub.random_images(12, 8)
LABELS = np.arange(12) % 3


def source(path: Path, test: Path | None = None, **choice):
    return arrays(path, test, "some", ArrayChoice(**choice))


def npz(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, **content)
    return path


CUT = {"train": slice(0, 7), "val": slice(7, 9), "test": slice(9, 12)}
MEDMNIST = {f"{split}_images": IMAGES[part] for split, part in CUT.items()}
MEDMNIST |= {f"{split}_labels": LABELS[part, None].astype(np.uint8) for split, part in CUT.items()}
GREY = IMAGES[..., 0]
KERAS = {"x_test": GREY[8:], "x_train": GREY[:8], "y_train": LABELS[:8], "y_test": LABELS[8:]}


@pytest.mark.parametrize(
    ("name", "content", "channels", "expected"),
    [
        ("samples_12x8x8x3.npz", {"arr_0": IMAGES, "arr_1": LABELS}, 3, {"train": slice(None)}),
        ("pathmnist.npz", MEDMNIST, 3, {"train": CUT["train"], "valid": CUT["val"], "test": CUT["test"]}),
        ("mnist.npz", KERAS, 1, {"train": slice(0, 8), "test": slice(8, 12)}),
    ],
)
def test_published_layouts(tmp_path, monkeypatch, name, content, channels, expected):
    """Of ADM and EDM, MedMNIST, Keras."""
    monkeypatch.setattr(module, "STRETCH", 3)
    np.savez_compressed(tmp_path / name, **content)
    description = pack(source(tmp_path / name, classes=["a", "b", "c"]), tmp_path / "out", shard_images=5)
    assert (list(description.splits), description.classes) == (list(expected), ["a", "b", "c"])
    assert description.source == name
    for split, part in expected.items():
        same(tmp_path / "out", split, IMAGES[part, ..., :channels], LABELS[part].tolist())


def test_a_pair_of_npy(tmp_path):
    """CIFAR-10.1, with another version beside it."""
    for version, shift in (("v4", 1), ("v6", 0)):
        np.save(tmp_path / f"cifar10.1_{version}_data.npy", IMAGES)
        np.save(tmp_path / f"cifar10.1_{version}_labels.npy", (LABELS + shift).astype(np.int64))
    pack(source(tmp_path / "cifar10.1_v6_data.npy", split="test"), tmp_path / "out")
    same(tmp_path / "out", "test", IMAGES, LABELS.tolist())


def test_one_npy_and_a_test_set(tmp_path):
    np.save(tmp_path / "mine.npy", IMAGES.transpose(0, 3, 1, 2)[:9].copy())
    np.save(tmp_path / "more.npy", IMAGES[9:])
    pack(source(tmp_path / "mine.npy", tmp_path / "more.npy"), tmp_path / "out")
    same(tmp_path / "out", "train", IMAGES[:9], None)
    same(tmp_path / "out", "test", IMAGES[9:], None)


def test_arrays_are_chosen_by_name(tmp_path):
    path = npz(tmp_path / "in.npz", first=IMAGES, second=IMAGES[::-1], coarse=LABELS, other_images=IMAGES)
    with pytest.raises(UserError, match=r"\(first \(12, 8, 8, 3\), second \(12, 8, 8, 3\)\)\. Choose with --images"):
        source(npz(tmp_path / "two.npz", first=IMAGES, second=IMAGES))
    pack(source(path, images="second", labels="coarse"), tmp_path / "out")
    same(tmp_path / "out", "train", IMAGES[::-1], LABELS.tolist())
    with pytest.raises(UserError, match="has no array 'third'"):
        source(path, images="third")
    with pytest.raises(UserError, match=r"could be a_images, b_images\. Choose with --images"):
        source(npz(tmp_path / "two.npz", a_images=IMAGES, b_images=IMAGES))


def test_an_interrupted_pack_goes_on_from_any_image(tmp_path):
    read = source(npz(tmp_path / "in.npz", arr_0=IMAGES, arr_1=LABELS)).splits["train"][0].open()
    for index in (11, 3, 4, 4, 9, 0):
        pixels, label, _ = read(index)
        np.testing.assert_array_equal(pixels, IMAGES[index])
        assert label == LABELS[index]


def test_images_of_other_shapes_are_fitted(tmp_path):
    wide = npz(tmp_path / "in.npz", arr_0=pub.random_images(3, (10, 14)))
    with pytest.raises(UserError, match="14x10 pixels: not square"):
        source(wide)
    assert pack(source(wide, resize=6), tmp_path / "out").shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": IMAGES.astype(np.float32)}, "an array of float32"),
        ({"arr_0": IMAGES[0, 0]}, r"an array of uint8 of shape \(3,\)"),
        ({"arr_0": np.zeros((3, 8, 8, 8), np.uint8)}, r"an array of uint8 of shape \(8, 8, 8\)"),
        ({"arr_0": IMAGES[:0]}, "no images"),
        ({"arr_0": np.zeros((3, 0, 0), np.uint8)}, r"shape \(0, 0, 1\)"),
        ({"arr_0": IMAGES, "arr_1": LABELS[:-1]}, r"labels of int64 of shape \(11,\), expected .* 12 images"),
        ({"arr_0": IMAGES, "arr_1": LABELS / 2}, "labels of float64"),
        ({"arr_0": IMAGES, "arr_1": np.full(12, 1 << 40)}, "at most 1048576 classes"),
        ({"arr_0": IMAGES, "arr_1": np.full(12, 1 << 63, np.uint64)}, "label 9223372036854775808"),
        ({"mu": np.zeros(2048), "sigma": np.zeros((8, 8))}, "none of its arrays can be told to be the images"),
        ({"train_images": IMAGES, "test_images": IMAGES[:, :4, :4]}, "12 images of in.npz cannot be packed"),
        ({"train_images": IMAGES, "test_images": IMAGES, "train_labels": LABELS}, "only some splits have labels"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "Fortran order; save numpy.ascontiguousarray"),
        ({"arr_0": np.array([IMAGES[0], None], dtype=object)}, "arr_0.npy' is not a plain array"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        pack(source(npz(tmp_path / "in.npz", **content)), tmp_path / "out")


def test_negative_labels_are_none(tmp_path):
    pack(source(npz(tmp_path / "in.npz", arr_0=IMAGES, arr_1=LABELS.astype(np.int8) - 1)), tmp_path / "out")
    same(tmp_path / "out", "train", IMAGES, (LABELS - 1).tolist())


GOOD = npy(IMAGES)
LONG_HEADER = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{" * 100 + bytes(1 << 26)
HOSTILE = {
    "huge": GOOD.replace(b"(12, 8, 8, 3)", b"(99999999, 8, 8, 3)").replace(b"        \n", b"\n", 1),
    "negative": GOOD.replace(b"(12, 8, 8, 3)", b"(-12, -8, 8, 3)"),
    "shorter": GOOD[:-1],
    "a header of two gigabytes": LONG_HEADER,
    "code": GOOD.replace(b"(12, 8, 8, 3)", b"__import__('os')"),
    "version 9": GOOD.replace(b"NUMPY\x01", b"NUMPY\x09"),
    "empty": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_headers_that_lie(tmp_path, what):
    (tmp_path / "data.npy").write_bytes(HOSTILE[what])
    (tmp_path / "data.npz").write_bytes(zip_bytes([("arr_0.npy", HOSTILE[what])]))
    for name in ("data.npy", "data.npz"):
        with pytest.raises(UserError, match=r"is not a plain array"):
            source(tmp_path / name)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_pixels_are_noticed(tmp_path, compression, monkeypatch):
    """By the checksum, although no process reads more than its part."""
    monkeypatch.setattr(module, "STRETCH", 3)
    data = bytearray(zip_bytes([("arr_0.npy", GOOD)], compression))
    data[400] ^= 1
    path = tmp_path / "in.npz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"arr_0\.npy'"):
        pack(source(path), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_no_such_file(tmp_path):
    for name in ("absent.npy", "absent.npz"):
        with pytest.raises(UserError, match=r"Correct the path"):
            source(tmp_path / name)
    (tmp_path / "in.npz").write_bytes(b"PK and so on")
    with pytest.raises(UserError, match=r"in\.npz cannot be read"):
        source(tmp_path / "in.npz")
