"""Random access to the samples of WebDataset shards, and their decoding.

A sample is the members of a tar that share a key: ``KEY.png`` or ``KEY.npy`` (the image) and ``KEY.cls`` (its
label, in ASCII). Any other member is ignored: what a stranger puts into a shard is data, never code.
webdataset's own readers go through a shard from its beginning, so resuming in the middle would decode all
that came before; here a shard is indexed once and any sample is read in place.
"""

import io
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset.tariterators import base_plus_ext

from fdtrain.data.dataset import Description, Shard
from fdtrain.errors import UserError

IMAGE_MEMBERS = ("npy", "png", "jpg", "jpeg", "webp")


@dataclass(frozen=True)
class Sample:
    """Where the members of one sample lie in the file: extension to (offset, size)."""

    key: str
    members: dict[str, tuple[int, int]]


class OpenShard:
    """One tar file, indexed by its headers and mapped into memory."""

    def __init__(self, path: Path):
        self.path = path
        self.samples: list[Sample] = []
        members: dict[str, tuple[int, int]] = {}
        try:
            self.data = np.memmap(path, mode="r")
            with tarfile.open(path, mode="r:") as tar:
                key = None
                for member in tar:
                    name, extension = base_plus_ext(member.name)
                    if name is None or not member.isreg():
                        continue
                    if name != key:
                        key, members = name, {}
                        self.samples.append(Sample(key, members))
                    members[extension.lower()] = (member.offset_data, member.size)
        except FileNotFoundError:
            raise UserError(f"{path} has disappeared. Restore it or pack again.") from None
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read as a tar file ({error}). Restore it or pack again.") from error

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size].tobytes()


class ShardReader:
    """Decoded samples of a data set by (shard, index). Not shared between threads.

    Args:
        folder: where the shards lie.
        shards: those of one split.
        description: what every image must be like.
        keep_open: shards held open; the least recently used is closed first.
    """

    def __init__(self, folder: str | Path, shards: list[Shard], description: Description, keep_open: int = 256):
        self.folder, self.shards, self.description = Path(folder), shards, description
        self.keep_open = keep_open
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def read(self, shard: int, index: int) -> tuple[np.ndarray, int]:
        """Image ``(C, H, W)`` uint8 with levels below ``description.levels``, and its label (-1 if it has none).

        Raises:
            UserError: the sample is missing, broken, or not what the data set's description says.
        """
        opened = self._opened(shard)
        sample = opened.samples[index]
        where = f"{opened.path}, sample '{sample.key}'"
        extension = next((e for e in IMAGE_MEMBERS if e in sample.members), None)
        if extension is None:
            raise UserError(f"{where}: no image member (one of {', '.join(IMAGE_MEMBERS)}). Pack the data set again.")
        try:
            image = _decode(opened.read(*sample.members[extension]), extension, self.description)
            label = int(opened.read(*sample.members["cls"])) if "cls" in sample.members else -1
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{where}: {error}. Repair it or pack the data set again.") from error
        if label >= len(self.description.classes) or label < -1:
            raise UserError(f"{where}: label {label}, but the data set has {len(self.description.classes)} classes.")
        return image, label

    def _opened(self, shard: int) -> OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        opened = OpenShard(self.folder / self.shards[shard].file)
        expected = self.shards[shard].images
        if len(opened.samples) != expected:
            raise UserError(f"{opened.path} holds {len(opened.samples)} samples, dataset.json says {expected}.")
        if len(self._open) >= self.keep_open:
            self._open.popitem(last=False)
        self._open[shard] = opened
        return opened


def _decode(data: bytes, extension: str, description: Description) -> np.ndarray:
    """Bytes to ``(C, H, W)`` uint8. Sizes are read from the header and checked before any pixel is decoded."""
    if extension == "npy":
        file = io.BytesIO(data)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(file)
        if version not in read_header:
            raise ValueError(f"npy format {version} is not supported")
        shape, fortran, dtype = read_header[version](file)
        if dtype != np.uint8 or fortran:
            raise ValueError(f"array of {dtype}, expected uint8 in C order")
        _check_shape(shape, description)
        image = np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape)
    else:
        with Image.open(io.BytesIO(data)) as picture:
            _check_shape((picture.height, picture.width, len(picture.getbands())), description)
            image = np.asarray(picture)
    image = image.reshape(description.size, description.size, description.channels).transpose(2, 0, 1)
    if description.levels < 256 and image.max() >= description.levels:
        raise ValueError(f"level {image.max()}, but the data set has levels 0 to {description.levels - 1}")
    return image


def _check_shape(shape: tuple[int, ...], description: Description) -> None:
    shape = (*shape, 1) if len(shape) == 2 else tuple(shape)
    expected = (description.size, description.size, description.channels)
    if shape != expected:
        raise ValueError(
            f"image of height x width x channels {'x'.join(map(str, shape))}, expected {'x'.join(map(str, expected))}"
        )
