"""Small files in exactly the layouts that data sets are published in, written as their authors' tools wrote them, and
what is in the data sets that are packed from them."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import packed
from packed import picture as encoded

from fdtrain.data.sources.images import images
from fdtrain.data.split import Split

RNG = np.random.default_rng(7)


def random_images(count: int, size: int | tuple[int, int], channels: int = 3) -> np.ndarray:
    """``(count, H, W, channels)`` uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    return RNG.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def random_labels(count: int, classes: int) -> list[int]:
    return RNG.integers(0, classes, count).tolist()


def planes(images: np.ndarray) -> np.ndarray:
    """``(n, 3 size^2)``: all red values of an image, then green, then blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


class Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2's cPickle and numpy wrote it: one kind of string, and numpy's old module names."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, protocol=2)

    def save_string(self, value):
        data = value.encode() if isinstance(value, str) else value
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, obj, name=None):
        module = {"_reconstruct": "numpy.core.multiarray", "ndarray": "numpy", "dtype": "numpy"}[obj.__name__]
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[type] = dispatch[type(len)] = save_global


def python2_pickle(value) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file).dump(value)
    return file.getvalue()


def python3_pickle(value, protocol: int = 3) -> bytes:
    """As numpy 1 wrote it, before its modules were renamed (left as they are where names have a length)."""
    data = pickle.dumps(value, protocol)
    return data if protocol > 3 else data.replace(b"numpy._core.", b"numpy.core.")


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    folders = sorted({name.rpartition("/")[0] for name in files} - {""})
    return packed.write_tar(path, [*((f, b"", tarfile.DIRTYPE, "") for f in folders), *files.items()], mode=mode)


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    folders = sorted({name.rpartition("/")[0] for name in files} - {""})
    path.write_bytes(packed.zip_bytes([*((f"{folder}/", b"") for folder in folders), *files.items()], compression))
    return path


FINE_CLASSES = [f"fine {i}" for i in range(100)]
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(path: Path, batch: int = 6) -> dict[str, tuple[np.ndarray, list[int]]]:
    """``cifar-10-python.tar.gz``, and its images and labels by split."""
    splits = {"train": (random_images(5 * batch, 32), random_labels(5 * batch, 10))}
    splits["test"] = (random_images(batch, 32), random_labels(batch, 10))
    files = {
        "batches.meta": {"num_cases_per_batch": batch, "label_names": CIFAR_CLASSES, "num_vis": 3072},
        "readme.html": "<html>",
        "test_batch": _cifar_batch(*splits["test"], "testing batch 1 of 1"),
    }
    for i in range(5):
        part = slice(i * batch, (i + 1) * batch)
        images, labels = splits["train"]
        files[f"data_batch_{i + 1}"] = _cifar_batch(images[part], labels[part], f"training batch {i + 1} of 5")
    write_tar(path, {f"cifar-10-batches-py/{name}": python2_pickle(value) for name, value in files.items()}, "w:gz")
    return splits


def _cifar_batch(images: np.ndarray, labels: list[int], label: str) -> dict:
    names = [f"image_s_{i:06d}.png" for i in range(len(images))]
    return {"batch_label": label, "labels": labels, "data": planes(images), "filenames": names}


def cifar100(path: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    """``cifar-100-python.tar.gz``, and its images and fine labels by split."""
    splits = {
        split: (random_images(count, 32), random_labels(count, 100)) for split, count in (("train", 9), ("test", 4))
    }
    files = {"meta": {"fine_label_names": FINE_CLASSES, "coarse_label_names": ["coarse"]}}
    for split, (pictures, labels) in splits.items():
        batch = _cifar_batch(pictures, [0] * len(labels), split)
        files[split] = {**batch, "coarse_labels": batch.pop("labels"), "fine_labels": labels}
    write_tar(path, {f"cifar-100-python/{name}": python2_pickle(value) for name, value in files.items()}, "w:gz")
    return splits


def imagenet_new(folder: Path, size: int, batch: int = 4, npz: bool = False) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The published zips in ``folder``, and images with labels from 0 by split."""
    splits = {"train": (random_images(10 * batch, size), random_labels(10 * batch, 1000))}
    splits["valid"] = (random_images(batch + 1, size), random_labels(batch + 1, 1000))
    files = {}
    images, labels = splits["train"]
    mean = planes(images).mean(axis=0)
    for i in range(10):
        part = slice(i * batch, (i + 1) * batch)
        content = {"data": planes(images[part]), "labels": [label + 1 for label in labels[part]], "mean": mean}
        files[f"train_data_batch_{i + 1}"] = content
    images, labels = splits["valid"]
    files["val_data"] = {"data": planes(images), "labels": [label + 1 for label in labels]}
    parts = {"train": [f"train_data_batch_{i}" for i in range(1, 11)], "val": ["val_data"]}
    if size == 64:
        parts = {"train_part1": parts["train"][:5], "train_part2": parts["train"][5:], "val": parts["val"]}
    for part, names in parts.items():
        stem = f"Imagenet{size}_{part}" + ("_npz" if npz else "")
        if npz:
            content = {f"{stem}/{name}.npz": _npz(files[name]) for name in names}
        else:
            content = {name: python3_pickle(files[name]) for name in names}
        write_zip(folder / f"{stem}.zip", content)
    return splits


def _npz(content: dict) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **{key: np.asarray(value) for key, value in content.items()})
    return file.getvalue()


def imagenet32_old(folder: Path, train: int = 23, valid: int = 7) -> dict[str, np.ndarray]:
    """``train_32x32.tar`` and ``valid_32x32.tar`` in ``folder``, and their images by split."""
    splits = {"train": random_images(train, 32), "valid": random_images(valid, 32)}
    for split, pictures in splits.items():
        files = {f"{split}_32x32/{i:07d}.png": encoded(picture) for i, picture in enumerate(pictures, 1)}
        write_tar(folder / f"{split}_32x32.tar", files)
    return splits


def celeba(path: Path, numbers: list[int]) -> dict[int, bytes]:
    """``img_align_celeba.zip`` with some of its images, and their JPEG files by number."""
    files = {number: encoded(image, "JPEG") for number, image in zip(numbers, random_images(len(numbers), (218, 178)))}
    write_zip(path, {f"img_align_celeba/{number:06d}.jpg": data for number, data in files.items()}, zipfile.ZIP_STORED)
    return files


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
