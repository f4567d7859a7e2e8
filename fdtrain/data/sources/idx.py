"""IDX files, as MNIST (LeCun et al. 1998) is published, and after it Fashion-MNIST, KMNIST and EMNIST.

A file is a magic number (two zero bytes, the type, the number of dimensions), the dimensions as big-endian 32-bit
numbers, and the values: http://yann.lecun.com/exdb/mnist. Gzipped or not.
"""

import math
import re
from pathlib import Path

import numpy as np

from fdtrain.data.sources.archive import single, stream
from fdtrain.data.sources.arrays import ArrayChoice, Pair, array_source
from fdtrain.data.sources.source import Source
from fdtrain.data.sources.stored_arrays import StoredArray
from fdtrain.errors import UserError

NAME = re.compile(r"(?:(?P<subset>[\w-]+)-)?(?P<split>train|test|t10k)-(?P<what>images|labels)[-.]idx\d-ubyte(?:\.gz)?")
UNSIGNED_BYTE = 0x08
DEFLATE_LIMIT = 1032
"""The most bytes that one byte of deflate can expand to."""
STRETCH = 100_000
"""The images of a part, at least: a file is inflated up to the part that is read, so few files have several."""


def idx(folder: Path, name: str, subset: str | None = None, classes: list[str] | None = None) -> Source:
    """All splits of a folder of IDX files named as published, such as ``train-images-idx3-ubyte.gz``.

    Args:
        subset: which data set of several in one folder: the part of the names before ``-train`` (EMNIST).
        classes: names of the labels from 0 on; None: their numbers.

    Raises:
        UserError: no such files, images and labels of other counts, headers that do not fit their files.
    """
    splits: dict[str, Pair] = {}
    for split, (images, labels) in _files(folder, subset).items():
        pictures, labelled = _described(images, 3), _described(labels, 1)
        _, height, width = pictures.shape
        if height != width:
            raise UserError(f"{images}: images of {height}x{width} pixels; only square ones can be packed.")
        splits[split] = Pair(pictures, labelled)
    return array_source(splits, name, folder, folder.name, ArrayChoice(classes=classes), STRETCH)


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
    chosen = subsets[0] if subset is None and len(subsets) == 1 else subset
    if chosen not in subsets:
        raise UserError(f"{folder} has {', '.join(filter(None, subsets)) or 'no subsets'}. Choose one by --subset.")
    files: dict[str, dict[str, Path]] = {"train": {}, "test": {}}
    for match in matches:
        if (match["subset"] or "") == chosen:
            # Of both forms of a file the gzipped one comes last.
            files["train" if match["split"] == "train" else "test"][match["what"]] = folder / match[0]
    for split, parts in files.items():
        if (parts or split == "train") and (missing := sorted({"images", "labels"} - parts.keys())):
            raise UserError(f"{folder} lacks the {' and '.join(missing)} of its {split} split. Fetch what is missing.")
    return {split: (parts["images"], parts["labels"]) for split, parts in files.items() if parts}


def _described(path: Path, dimensions: int) -> StoredArray:
    """Read the header, and check its dimensions against the file's length before any value is read."""
    zipped = path.suffix == ".gz"
    member = single(path, "gzip" if zipped else "file")
    stored = member.stored
    with stream(member) as file:
        magic, sizes = file.read(4), file.read(4 * dimensions)
    if magic != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise UserError(
            f"{path} begins with {magic.hex() or 'nothing'}; an IDX file of bytes in {dimensions} dimensions begins "
            f"with 0000{UNSIGNED_BYTE:02x}{dimensions:02x}. Is it the published file?"
        )
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    length = 4 + 4 * dimensions + math.prod(shape)
    if len(sizes) != 4 * dimensions or not (length <= stored * DEFLATE_LIMIT if zipped else length == stored):
        claimed = " x ".join(map(str, shape))
        raise UserError(f"{path}: a header of {claimed} does not fit a file of {stored} bytes. Fetch it again.")
    # Images of EMNIST are stored by columns.
    transposed = dimensions == 3 and path.name.startswith("emnist-")
    return StoredArray(member._replace(size=length), shape, np.dtype(np.uint8), transposed)
