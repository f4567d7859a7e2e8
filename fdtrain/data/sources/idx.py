"""IDX files, as MNIST (LeCun et al. 1998) is published, and after it Fashion-MNIST, KMNIST and EMNIST.

A file is a magic number (two zero bytes, the type, the number of dimensions), the dimensions as big-endian 32-bit
numbers, and the values: http://yann.lecun.com/exdb/mnist. Gzipped or not.
"""

import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from fdtrain.data.sources.source import Sample, Source, even, numbered
from fdtrain.errors import UserError

NAME = re.compile(r"(?:(?P<subset>[\w-]+)-)?(?P<split>train|test|t10k)-(?P<what>images|labels)[-.]idx\d-ubyte(?:\.gz)?")
UNSIGNED_BYTE = 0x08
DEFLATE_LIMIT = 1032
"""The most bytes that one byte of deflate can expand to."""
STRETCH = 100_000
"""The images of a part, at least: a file is inflated up to the part that is read, so few files have several."""
PARTS = 8
"""The parts of a file, at most."""


@dataclass(frozen=True)
class IdxImages:
    """A range of one split; ``transposed`` images are stored by columns, as EMNIST's are."""

    images: Path
    labels: Path
    stretch: range
    transposed: bool

    def count(self) -> int:
        return len(self.stretch)

    def open(self) -> Callable[[int], Sample]:
        images = _values(self.images, 3, self.stretch)[..., None]
        labels = _values(self.labels, 1, self.stretch)
        if self.transposed:
            images = images.swapaxes(1, 2)
        return lambda index: (np.ascontiguousarray(images[index]), int(labels[index]))

    def identity(self) -> str:
        sizes = self.images.stat().st_size, self.labels.stat().st_size
        return repr((self.images.name, self.labels.name, sizes, self.stretch, self.transposed))


def idx(folder: Path, name: str, subset: str | None = None, classes: list[str] | None = None) -> Source:
    """All splits of a folder of IDX files named as published, such as ``train-images-idx3-ubyte.gz``.

    Args:
        subset: which data set of several in one folder: the part of the names before ``-train`` (EMNIST).
        classes: names of the labels from 0 on; None: their numbers.

    Raises:
        UserError: no such files, images and labels of other counts, headers that do not fit their files.
    """
    files = _files(folder, subset)
    splits, sizes, largest = {}, set(), 0
    for split, (images, labels) in files.items():
        count, height, width = _shape(images, 3)
        (labelled,) = _shape(labels, 1)
        if labelled != count:
            raise UserError(
                f"{labels} has {labelled} labels for the {count} images of {images.name}. Fetch both again."
            )
        if height != width:
            raise UserError(f"{images}: images of {height}x{width} pixels; only square ones can be packed.")
        if count:
            largest = max(largest, int(_values(labels, 1, range(count)).max()))
        sizes.add(height)
        transposed = images.name.startswith("emnist-")
        stretches = even(count, max(STRETCH, count // PARTS))
        splits[split] = [IdxImages(images, labels, stretch, transposed) for stretch in stretches]
    if len(sizes) > 1:
        raise UserError(f"{folder}: splits of different sizes ({', '.join(map(str, sorted(sizes)))} pixels).")
    if classes is not None and largest >= len(classes):
        raise UserError(f"--classes: {len(classes)} names, but {folder} has labels up to {largest}.")
    return Source(
        name=name,
        source=folder.name,
        size=sizes.pop(),
        channels=1,
        classes=classes or numbered(largest, str(folder)),
        splits=splits,
    )


def _files(folder: Path, subset: str | None) -> dict[str, tuple[Path, Path]]:
    """The files of images and of labels of each split."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder} ({error.strerror}).") from error
    matches = [match for name in names if (match := NAME.fullmatch(name))]
    if not matches and (folder / "raw").is_dir():
        # As torchvision stores them.
        return _files(folder / "raw", subset)
    if not matches:
        raise UserError(f"{folder} holds no IDX files named as published, such as train-images-idx3-ubyte.gz.")
    subsets = sorted({match["subset"] or "" for match in matches})
    if subset is None and len(subsets) > 1:
        raise UserError(
            f"{folder} holds several data sets; choose one by --subset: {', '.join(filter(None, subsets))}."
        )
    chosen = subsets[0] if subset is None else subset
    if chosen not in subsets:
        raise UserError(f"--subset {subset}: {folder} has {', '.join(filter(None, subsets)) or 'none'}.")
    files: dict[str, dict[str, Path]] = {}
    for match in matches:
        if (match["subset"] or "") == chosen:
            split = files.setdefault("train" if match["split"] == "train" else "test", {})
            if match["what"] in split and match[0] != f"{split[match['what']].name}.gz":
                raise UserError(f"{folder} holds both {split[match['what']].name} and {match[0]}. Remove one.")
            split[match["what"]] = folder / match[0]
    for split, parts in files.items():
        if missing := {"images", "labels"} - parts.keys():
            raise UserError(f"{folder} lacks the {missing.pop()} of its {split} split. Fetch the missing file.")
    if "train" not in files:
        raise UserError(f"{folder} has no train split. Fetch train-images-idx3-ubyte.gz and its labels.")
    return {split: (files[split]["images"], files[split]["labels"]) for split in ("train", "test") if split in files}


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open the file, which is inflated as it is read."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as inflated:
                    yield inflated
            else:
                yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}). Fetch it again.") from error


def _header(file: io.BufferedIOBase, path: Path, dimensions: int) -> tuple[int, ...]:
    """Read the header, and check its dimensions against the file's length before any value is read."""
    magic = file.read(4)
    if magic != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise UserError(
            f"{path} begins with {magic.hex() or 'nothing'}; an IDX file of bytes in {dimensions} dimensions begins "
            f"with 0000{UNSIGNED_BYTE:02x}{dimensions:02x}. Is it the published file?"
        )
    sizes = file.read(4 * dimensions)
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    length = 4 + 4 * dimensions + math.prod(shape)
    stored = path.stat().st_size
    fits = length <= stored * DEFLATE_LIMIT if path.suffix == ".gz" else length == stored
    if len(sizes) != 4 * dimensions or not fits:
        claimed = " x ".join(map(str, shape))
        raise UserError(f"{path}: a header of {claimed} does not fit a file of {stored} bytes. Fetch it again.")
    return shape


def _shape(path: Path, dimensions: int) -> tuple[int, ...]:
    with _opened(path) as file:
        return _header(file, path, dimensions)


def _values(path: Path, dimensions: int, stretch: range) -> np.ndarray:
    """The uint8 values of a range of the first dimension.

    Raises:
        UserError: the file ends before its header says, or goes on after it.
    """
    with _opened(path) as file:
        shape = _header(file, path, dimensions)
        each = math.prod(shape[1:])
        _skip(file, stretch.start * each)
        data = file.read(len(stretch) * each)
        if stretch.stop == shape[0] and file.read(1):
            raise UserError(f"{path} goes on after the {shape[0]} entries of its header. Fetch it again.")
    if len(data) != len(stretch) * each:
        raise UserError(f"{path} ends before the {shape[0]} entries of its header. Fetch it again.")
    return np.frombuffer(data, np.uint8).reshape(len(stretch), *shape[1:])


def _skip(file: io.BufferedIOBase, count: int) -> None:
    """Read and discard, in pieces. A seek in a gzip file would do the same, but not notice the end of the file."""
    for start, stop in pairwise([*range(0, count, 1 << 20), count]):
        file.read(stop - start)
