"""Every source, packed from files in its published layout and compared image by image."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import published as pub
import pytest
from PIL import Image

from fdtrain.data.dataset import DatasetDescription, read_description
from fdtrain.data.pack import pack
from fdtrain.data.sources.images import images
from fdtrain.data.sources.published import celeba64, cifar10, cifar100, imagenet32_old, imagenet_new
from fdtrain.data.split import Split


def unpacked(folder: Path, split: str) -> tuple[np.ndarray, list[int]]:
    """Images ``(n, H, W, C)`` and labels of a packed split, as training and evaluation read them."""
    data = Split(folder, split)
    found, labels = data.batch(range(len(data)))
    return found.numpy().transpose(0, 2, 3, 1), labels.tolist()


def same(folder: Path, split: str, expected: np.ndarray, labels: list[int] | None) -> None:
    found, found_labels = unpacked(folder, split)
    np.testing.assert_array_equal(found, expected)
    assert found_labels == (labels or [-1] * len(expected))


def by_content(found: np.ndarray, labels: list[int]) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), label) for image, label in zip(found, labels, strict=True)}


def image_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def image_source(train: Path, test: Path | None = None, holdout: int = 0, resize=None, channels=None, share: int = 4):
    return images(train, test, holdout, "some", resize, channels, share)


def test_cifar10(tmp_path):
    splits = pub.cifar10(tmp_path / "cifar-10-python.tar.gz")
    out = tmp_path / "out"
    description = pack(cifar10(tmp_path / "cifar-10-python.tar.gz"), out, "png", shard_images=4)
    for split, (expected, labels) in splits.items():
        same(out, split, expected, labels)
    shutil.unpack_archive(tmp_path / "cifar-10-python.tar.gz", tmp_path, filter="data")
    folder = pack(cifar10(tmp_path / "cifar-10-batches-py"), tmp_path / "folder", "png", 4)
    assert folder.splits == description.splits
    assert description == read_description(out)
    assert (description.name, description.classes, description.levels) == ("cifar10", pub.CIFAR_CLASSES, 256)
    assert (description.shape, description.encoding) == ((3, 32, 32), "png")
    assert description.source == "cifar-10-python.tar.gz"


def test_cifar100(tmp_path):
    splits = pub.cifar100(tmp_path / "cifar-100-python.tar.gz")
    description = pack(cifar100(tmp_path / "cifar-100-python.tar.gz"), tmp_path / "out")
    for split, (expected, labels) in splits.items():
        same(tmp_path / "out", split, expected, labels)
    assert (description.name, description.classes[7]) == ("cifar100", "fine 7")


@pytest.mark.parametrize(("size", "npz"), [(32, True), (64, False)])
def test_imagenet_new(tmp_path, size, npz):
    splits = pub.imagenet_new(tmp_path, size, npz=npz)
    out = tmp_path / "out"
    description = pack(imagenet_new(sorted(tmp_path.glob("*.zip")), size), out, shard_images=3)
    for split, (expected, labels) in splits.items():
        same(out, split, expected, labels)
    for path in tmp_path.glob("*.zip"):
        shutil.unpack_archive(path, tmp_path / "batches")
    folder = pack(imagenet_new([tmp_path / "batches"], size), tmp_path / "folder", shard_images=3)
    assert folder.splits == description.splits
    assert description.name == f"imagenet{size}-new"
    assert len(description.classes) == 1000
    assert description.classes[0] == "1"


def test_imagenet32_old(tmp_path):
    splits = pub.imagenet32_old(tmp_path)
    source = imagenet32_old(tmp_path / "train_32x32.tar", tmp_path / "valid_32x32.tar", share=5)
    description = pack(source, tmp_path / "out", shard_images=5)
    for split, expected in splits.items():
        same(tmp_path / "out", split, expected, None)
    assert (description.name, description.classes) == ("imagenet32-old", [])


NUMBERS = [1, 162770, 162771, 182637, 182638, 202599]


@pytest.mark.parametrize("listed", [False, True])
def test_celeba64(tmp_path, listed):
    files = pub.celeba(tmp_path / "img_align_celeba.zip", NUMBERS)
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


@pytest.mark.parametrize("container", ["folder", "stored zip", "wrapped zip", "tar"])
def test_images_in_class_folders(tmp_path, container):
    pictures = pub.random_images(11, 9)
    names = [f"{'cat' if i % 3 else 'dog'}/deeper/{i}.png" for i in range(11)]
    files = {name: pub.encoded(image) for name, image in zip(names, pictures)} | {"cat/notes.txt": b"no image"}
    if container == "folder":
        train = image_folder(tmp_path / "in", files | {".DS_Store": b"", "cat/._1.png": b"junk"})
    elif container == "tar":
        train = pub.write_tar(tmp_path / "in.tar", {f"./{name}": data for name, data in files.items()})
    else:
        prefix = "wrapper/" if container == "wrapped zip" else ""
        compression = zipfile.ZIP_STORED if container == "stored zip" else zipfile.ZIP_DEFLATED
        train = pub.write_zip(tmp_path / "in.zip", {prefix + n: d for n, d in files.items()}, compression)
    description = pack(image_source(train), tmp_path / "out", shard_images=4)
    assert description.classes == ["cat", "dog"]
    assert list(description.splits) == ["train"]
    expected = by_content(pictures, [int(i % 3 == 0) for i in range(11)])
    assert by_content(*unpacked(tmp_path / "out", "train")) == expected


def test_images_are_shuffled_and_alike_from_folder_and_zip(tmp_path):
    files = {f"{c}/{i}.png": pub.encoded(image) for c in "ab" for i, image in enumerate(pub.random_images(20, 8))}
    one = pack(image_source(image_folder(tmp_path / "in", files)), tmp_path / "one")
    two = pack(image_source(pub.write_zip(tmp_path / "in.zip", files)), tmp_path / "two")
    assert one.splits == two.splits
    labels = unpacked(tmp_path / "one", "train")[1]
    assert sorted(labels) == [0] * 20 + [1] * 20
    assert labels != sorted(labels)


@pytest.mark.parametrize("labelled", [True, False])
def test_images_of_edm(tmp_path, labelled):
    pictures = pub.random_images(6, 8)
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(6)]
    labels = [[name, i % 3] for i, name in enumerate(names)] if labelled else None
    files = {name: pub.encoded(image) for name, image in zip(names, pictures)}
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    description = pack(image_source(pub.write_zip(tmp_path / "in.zip", files, zipfile.ZIP_STORED)), tmp_path / "out")
    assert description.classes == (["0", "1", "2"] if labelled else [])
    expected = by_content(pictures, [i % 3 if labelled else -1 for i in range(6)])
    assert by_content(*unpacked(tmp_path / "out", "train")) == expected


def test_images_held_out(tmp_path):
    train, test = pub.random_images(8, 8), pub.random_images(4, 8)
    for part, pictures in (("train", train), ("test", test)):
        image_folder(tmp_path / part, {f"{'ab'[i % 2]}/{i}.png": pub.encoded(p) for i, p in enumerate(pictures)})
    pack(image_source(tmp_path / "train", tmp_path / "test"), tmp_path / "out")
    assert by_content(*unpacked(tmp_path / "out", "train")) == by_content(train, [0, 1] * 4)
    assert by_content(*unpacked(tmp_path / "out", "test")) == by_content(test, [0, 1] * 2)
    description = pack(image_source(tmp_path / "train", holdout=3), tmp_path / "held")
    assert (description.images("train"), description.images("test")) == (5, 3)
    parts = [by_content(*unpacked(tmp_path / "held", split)) for split in ("train", "test")]
    assert parts[0] | parts[1] == by_content(train, [0, 1] * 4)


def test_images_resized(tmp_path):
    wide, tall = pub.random_images(1, (20, 30))[0], pub.random_images(1, (40, 20), channels=1)[0]
    folder = image_folder(tmp_path / "in", {"a.png": pub.encoded(wide), "b.png": pub.encoded(tall)})
    description = pack(image_source(folder, resize=10, channels=3), tmp_path / "out")
    expected = [
        Image.fromarray(wide).crop((5, 0, 25, 20)).resize((10, 10), Image.Resampling.LANCZOS),
        Image.fromarray(tall[:, :, 0]).crop((0, 10, 20, 30)).convert("RGB").resize((10, 10), Image.Resampling.LANCZOS),
    ]
    found = by_content(*unpacked(tmp_path / "out", "train"))
    assert found == {(np.asarray(image).tobytes(), -1) for image in expected}
    assert "Lanczos to 10x10" in description.source


def test_digits_are_what_they_were(digits):
    from sklearn.datasets import load_digits

    description: DatasetDescription = read_description(digits)
    found = by_content(*unpacked(digits, "train")) | by_content(*unpacked(digits, "test"))
    data = load_digits()
    assert found == by_content(data.images.astype(np.uint8), data.target.tolist())
    # The split and its order are part of every digits figure ever reported.
    assert description.splits["train"][0].sha256.startswith("36d6737138746155")
    assert description.splits["test"][-1].sha256.startswith("bc1b7cc8bb3d0923")
