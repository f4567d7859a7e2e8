"""Arrays in files, of numpy and IDX, written as their authors write them: every image with its label, no header is
trusted; and Fashion-MNIST itself where it is installed."""

import gzip
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import published as pub
import pytest
from packed import npy, refused, zip_bytes
from published import same

from fdtrain.data.pack import pack
from fdtrain.data.sources import arrays as of_arrays
from fdtrain.data.sources import idx as of_idx
from fdtrain.data.sources.arrays import ArrayChoice, arrays
from fdtrain.data.sources.idx import idx

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
    monkeypatch.setattr(of_arrays, "STRETCH", 3)
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
    with refused(r"\(first \(12, 8, 8, 3\), second \(12, 8, 8, 3\)\)\. Choose with --images"):
        source(npz(tmp_path / "two.npz", first=IMAGES, second=IMAGES))
    pack(source(path, images="second", labels="coarse"), tmp_path / "out")
    same(tmp_path / "out", "train", IMAGES[::-1], LABELS.tolist())
    with refused("has no array 'third'"):
        source(path, images="third")
    with refused(r"could be a_images, b_images\. Choose with --images"):
        source(npz(tmp_path / "two.npz", a_images=IMAGES, b_images=IMAGES))


def test_an_interrupted_pack_goes_on_from_any_image(tmp_path):
    read = source(npz(tmp_path / "in.npz", arr_0=IMAGES, arr_1=LABELS)).splits["train"][0].open()
    for index in (11, 3, 4, 4, 9, 0):
        pixels, label, _ = read(index)
        np.testing.assert_array_equal(pixels, IMAGES[index])
        assert label == LABELS[index]


def test_images_of_other_shapes_are_fitted(tmp_path):
    wide = npz(tmp_path / "in.npz", arr_0=pub.random_images(3, (10, 14)))
    with refused("14x10 pixels: not square"):
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
    with refused(message):
        pack(source(npz(tmp_path / "in.npz", **content)), tmp_path / "out")


def test_negative_labels_are_none(tmp_path):
    pack(source(npz(tmp_path / "in.npz", arr_0=IMAGES, arr_1=LABELS.astype(np.int8) - 1)), tmp_path / "out")
    same(tmp_path / "out", "train", IMAGES, (LABELS - 1).tolist())


GOOD = npy(IMAGES)
LONG_HEADER = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{" * 100 + bytes(1 << 20)
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
        with refused(r"is not a plain array"):
            source(tmp_path / name)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_pixels_are_noticed(tmp_path, compression, monkeypatch):
    """By the checksum, although no process reads more than its part."""
    monkeypatch.setattr(of_arrays, "STRETCH", 3)
    data = bytearray(zip_bytes([("arr_0.npy", GOOD)], compression))
    data[400] ^= 1
    path = tmp_path / "in.npz"
    path.write_bytes(data)
    with refused(r"arr_0\.npy'"):
        pack(source(path), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_no_such_file(tmp_path):
    for name in ("absent.npy", "absent.npz"):
        with refused(r"Correct the path"):
            source(tmp_path / name)
    (tmp_path / "in.npz").write_bytes(b"PK and so on")
    with refused(r"in\.npz cannot be read"):
        source(tmp_path / "in.npz")


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Of Debian's package dataset-fashion-mnist."""
FASHION_IMAGES = {"train": 60_000, "test": 10_000}


def header(*dimensions: int) -> bytes:
    return struct.pack(f">BBBB{len(dimensions)}I", 0, 0, 8, len(dimensions), *dimensions)


def write(folder: Path, split: str, part: slice, zipped=True, prefix="") -> None:
    """Some of the grey images, and their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for what, values in (("images", GREY[part]), ("labels", LABELS[part].astype(np.uint8))):
        content = header(*values.shape) + values.tobytes()
        name = f"{prefix}{split}-{what}-idx{values.ndim}-ubyte"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mnist"


@pytest.mark.parametrize("zipped", [True, False])
def test_every_image_and_label(folder, tmp_path, monkeypatch, zipped):
    # A large file is not inflated for ever more parts.
    monkeypatch.setattr(of_arrays, "PARTS", 3)
    monkeypatch.setattr(of_idx, "STRETCH", 2)
    for split, part in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        write(folder, split, part, zipped)
    source = idx(folder, "mine", classes=["a", "b", "c"])
    assert len(source.splits["train"]) == 3
    description = pack(source, tmp_path / "out", shard_images=4)
    assert (description.name, description.channels, description.size) == ("mine", 1, 8)
    assert description.classes == ["a", "b", "c"]
    same(tmp_path / "out", "train", GREY[:9, ..., None], LABELS[:9].tolist())
    same(tmp_path / "out", "test", GREY[9:, ..., None], LABELS[9:].tolist())
    with refused(r"2 names, but .* labels up to 2"):
        idx(folder, "x", classes=["a", "b"])


def test_emnist_is_stored_by_columns(folder, tmp_path):
    for subset in ("balanced", "letters"):
        write(folder, "train", slice(3), prefix=f"emnist-{subset}-")
    with refused(r"has emnist-balanced, emnist-letters\. Choose one"):
        idx(folder, "x")
    with refused("has emnist-balanced, emnist-letters"):
        idx(folder, "x", subset="emnist-digits")
    pack(idx(folder, "x", subset="emnist-letters"), tmp_path / "out")
    same(tmp_path / "out", "train", GREY[:3].swapaxes(1, 2)[..., None], [0, 1, 2])


def replaced(name: str, content: bytes):
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


PIXELS, NUMBERS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
MISTAKES = {
    "wrong magic": (replaced(PIXELS, struct.pack(">BBBB", 0, 0, 13, 3) + bytes(100)), "begins with 00000d03"),
    "a header cut short": (replaced(PIXELS, header(4, 6, 6)[:9]), "does not fit"),
    "dimensions beyond the file": (replaced(PIXELS, header(1 << 31, 1 << 31, 1 << 31)), "does not fit"),
    "more than the header says": (replaced(PIXELS, header(4, 6, 6) + bytes(4 * 36 + 1)), "does not fit"),
    "labels of another count": (
        replaced(NUMBERS, header(3) + bytes(3)),
        r"labels of uint8 of shape \(3,\), expected .* each of 4 images",
    ),
    "images that are not square": (replaced(PIXELS, header(4, 4, 9) + bytes(4 * 36)), "only square"),
    "no labels": (lambda folder: (folder / NUMBERS).unlink(), "lacks the labels"),
    "both forms of a file": (replaced(f"{PIXELS}.gz", b""), "begins with nothing"),
    "no files": (lambda folder: [path.unlink() for path in folder.iterdir()], "no IDX files"),
    "no folder": (shutil.rmtree, "cannot read the fold"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_before_anything_is_packed(folder, mistake):
    write(folder, "train", slice(4), zipped=False)
    change, message = MISTAKES[mistake]
    change(folder)
    with refused(message):
        idx(folder, "x")


@pytest.mark.parametrize(
    ("zipped", "message"),
    [
        (gzip.compress(header(4, 6, 6) + bytes(3 * 36), mtime=0), "does not have the 4 entries"),
        # A megabyte of zeros in a kilobyte: never inflated beyond what the header says.
        (gzip.compress(header(4, 6, 6) + bytes(1 << 20), mtime=0), "does not have the 4 entries"),
        (gzip.compress(header(4, 6, 6) + bytes(4 * 36), mtime=0)[:-6], "cannot be read"),
    ],
    ids=["shorter", "much longer", "cut"],
)
def test_a_gzipped_file_of_another_length_than_its_header(folder, tmp_path, zipped, message):
    write(folder, "train", slice(4))
    (folder / f"{PIXELS}.gz").write_bytes(zipped)
    with refused(message):
        pack(idx(folder, "x"), tmp_path / "out")


@pytest.mark.parametrize("place", ["", "raw"])
def test_torchvisions_folder_with_both_forms(tmp_path, place):
    for zipped in (False, True):
        write(tmp_path / "in" / "raw", "train", slice(4), zipped)
    pack(idx(tmp_path / "in" / place, "x"), tmp_path / "out")
    same(tmp_path / "out", "train", GREY[:4, ..., None], LABELS[:4].tolist())


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_itself():
    splits = idx(FASHION_MNIST, "fashion-mnist").splits
    assert {split: sum(part.count() for part in parts) for split, parts in splits.items()} == FASHION_IMAGES
    raw = gzip.decompress((FASHION_MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    samples = [read(i) for part in splits["test"] for read in [part.open()] for i in range(part.count())]
    assert b"".join(pixels.tobytes() for pixels, *_ in samples) == raw[16:]
    assert np.bincount([label for _, label, _ in samples]).tolist() == [1000] * 10
