"""IDX files: packed exactly, from files in the published layout and from Fashion-MNIST itself where it is installed."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from published import random_images, random_labels
from test_pack_sources import same, unpacked

from fdtrain.data.pack import pack
from fdtrain.data.sources import idx as module
from fdtrain.data.sources.idx import idx
from fdtrain.errors import UserError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Of Debian's package dataset-fashion-mnist."""


def header(*dimensions: int) -> bytes:
    return struct.pack(f">BBBB{len(dimensions)}I", 0, 0, 8, len(dimensions), *dimensions)


def write(folder: Path, split: str, images: np.ndarray, labels: list[int], zipped=True, prefix="") -> None:
    for what, values in (("images", images), ("labels", np.array(labels, np.uint8))):
        content = header(*values.shape) + values.tobytes()
        name = f"{prefix}{split}-{what}-idx{values.ndim}-ubyte"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    return folder


def test_a_large_file_is_not_inflated_for_ever_more_parts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STRETCH", 2)
    images, labels = random_images(203, 3, 1)[..., 0], random_labels(203, 3)
    write(folder, "train", images, labels)
    source = idx(folder, "x")
    assert len(source.splits["train"]) == 8
    pack(source, tmp_path / "out")
    same(tmp_path / "out", "train", images[..., None], labels)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_image_and_label(folder, tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(module, "STRETCH", 5)
    with pytest.raises(UserError, match="no IDX files"):
        idx(folder, "mine")
    expected = {}
    for split, name, count in (("train", "train", 13), ("test", "t10k", 4)):
        images, labels = random_images(count, 6, 1)[..., 0], random_labels(count, 3)
        write(folder, name, images, labels, zipped)
        expected[split] = images, labels
    description = pack(idx(folder, "mine", classes=["a", "b", "c"]), tmp_path / "out", shard_images=4)
    assert (description.name, description.channels, description.size) == ("mine", 1, 6)
    assert description.classes == ["a", "b", "c"]
    for split, (images, labels) in expected.items():
        same(tmp_path / "out", split, images[..., None], labels)
    with pytest.raises(UserError, match=r"2 names, but .* labels up to 2"):
        idx(folder, "x", classes=["a", "b"])


def test_emnist_is_stored_by_columns(folder, tmp_path):
    images = random_images(3, 6, 1)[..., 0]
    write(folder, "train", images, [0, 1, 2], prefix="emnist-balanced-")
    write(folder, "train", images, [0, 1, 2], prefix="emnist-letters-")
    with pytest.raises(UserError, match=r"has emnist-balanced, emnist-letters\. Choose one"):
        idx(folder, "x")
    with pytest.raises(UserError, match="has emnist-balanced, emnist-letters"):
        idx(folder, "x", subset="emnist-digits")
    pack(idx(folder, "x", subset="emnist-letters"), tmp_path / "out")
    same(tmp_path / "out", "train", images.swapaxes(1, 2)[..., None], [0, 1, 2])


def replaced(name: str, content: bytes):
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
MISTAKES = {
    "wrong magic": (replaced(IMAGES, struct.pack(">BBBB", 0, 0, 13, 3) + bytes(100)), "begins with 00000d03"),
    "a header cut short": (replaced(IMAGES, header(4, 6, 6)[:9]), "does not fit"),
    "dimensions beyond the file": (replaced(IMAGES, header(1 << 31, 1 << 31, 1 << 31)), "does not fit"),
    "more than the header says": (replaced(IMAGES, header(4, 6, 6) + bytes(4 * 36 + 1)), "does not fit"),
    "labels of another count": (
        replaced(LABELS, header(3) + bytes(3)),
        r"labels of uint8 of shape \(3,\), expected .* each of 4 images",
    ),
    "images that are not square": (replaced(IMAGES, header(4, 4, 9) + bytes(4 * 36)), "only square"),
    "no labels": (lambda folder: (folder / LABELS).unlink(), "lacks the labels"),
    "both forms of a file": (replaced(IMAGES + ".gz", b""), "begins with nothing"),
    "no folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()] and folder.rmdir(),
        "cannot read the fold",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_before_anything_is_packed(folder, mistake):
    write(folder, "train", random_images(4, 6, 1)[..., 0], [0, 1, 2, 1], zipped=False)
    change, message = MISTAKES[mistake]
    change(folder)
    with pytest.raises(UserError, match=message):
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
    write(folder, "train", random_images(4, 6, 1)[..., 0], [0, 1, 2, 1])
    (folder / f"{IMAGES}.gz").write_bytes(zipped)
    with pytest.raises(UserError, match=message):
        pack(idx(folder, "x"), tmp_path / "out")


@pytest.mark.parametrize("place", ["", "raw"])
def test_torchvisions_folder_with_both_forms(tmp_path, place):
    pictures, labels = random_images(4, 6, 1)[..., 0], [0, 1, 2, 1]
    (tmp_path / "in" / "raw").mkdir(parents=True)
    for zipped in (False, True):
        write(tmp_path / "in" / "raw", "train", pictures, labels, zipped=zipped)
    pack(idx(tmp_path / "in" / place, "x"), tmp_path / "out")
    same(tmp_path / "out", "train", pictures[..., None], labels)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_itself(tmp_path):
    description = pack(idx(FASHION_MNIST, "fashion-mnist"), tmp_path)
    assert {split: description.images(split) for split in description.splits} == {"train": 60_000, "test": 10_000}
    raw = gzip.decompress((FASHION_MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    images, labels = unpacked(tmp_path, "test")
    assert images.tobytes() == raw[16:]
    assert np.bincount(labels).tolist() == [1000] * 10
