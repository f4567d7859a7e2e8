"""Random access to the samples of WebDataset shards.

A sample is the members of a tar that share a key: an image (``KEY.npy``, ``KEY.png``...) and its label
(``KEY.cls`` or ``KEY.json``), see :mod:`fdtrain.data.decode`. Any other member is ignored. webdataset's own readers
go through a shard from its beginning, so resuming in the middle would decode all that came before;
here a shard is indexed once and any sample is read in place.
"""

import hashlib
import mmap
import os
import resource
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fdtrain.data.cache import Cache
from fdtrain.data.dataset import DatasetDescription, Shard
from fdtrain.data.decode import IMAGES, LABELS, LONGEST_LABEL, Broken, ImageDecoder, label
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.tar import BLOCK, members
from fdtrain.errors import UserError

_NO_LABEL, _BAD_LABEL = -1, -2


@dataclass(frozen=True)
class PlacedShard:
    """A shard, where it lies (a path, a URL or ``pipe:`` command), and its labels among the run's classes."""

    shard: Shard
    place: str
    labels: range

    @property
    def name(self) -> str:
        """For messages: without the secrets that a URL or command may hold."""
        return shown(self.place)


class OpenShard:
    """One tar file, indexed by its headers. Samples are read by ``pread``: a mapping would count as memory.

    ``kind`` indexes ``IMAGES`` (-1: no image), ``offset`` and ``size`` place the image, in bytes. ``verify`` checks a
    local shard against its checksum; a fetched one was checked when it arrived.
    """

    def __init__(self, placed: PlacedShard, cache: Cache | None, verify: bool = False):
        self.placed = placed
        path, self._hold = cache.hold(placed.shard, placed.place) if is_remote(placed.place) else (placed.place, None)
        try:
            self.file = os.open(path, os.O_RDONLY)
            if verify and self._hold is None:
                _verify(placed)
            with mmap.mmap(self.file, 0, access=mmap.ACCESS_READ) as data:
                found = _samples(data)
        except FileNotFoundError:
            raise UserError(f"{path} has disappeared. Restore it or pack again.") from None
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UserError(
                f"{placed.name} cannot be read as a tar file ({error}). Restore it or pack again."
            ) from error
        if len(found) != placed.shard.images:
            raise UserError(
                f"{placed.name} holds {len(found)} samples, dataset.json says {placed.shard.images}. "
                "Restore it or pack again."
            )
        self.kind, self.offset, self.size, self.label = np.array(found, dtype=np.int64).reshape(-1, 4).T.copy()

    def where(self, index: int) -> str:
        """A sample in words."""
        header = os.pread(self.file, BLOCK, int(self.offset[index]) - BLOCK)
        key = header[:100].rstrip(b"\0").decode(errors="replace").rpartition("/")[2].partition(".")[0]
        return f"{self.placed.name}, sample '{key}'"

    def close(self) -> None:
        os.close(self.file)
        if self._hold is not None:
            os.close(self._hold)


def _verify(placed: PlacedShard) -> None:
    with open(placed.place, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != placed.shard.sha256:
            raise UserError(
                f"{placed.name}: checksum mismatch: not the file that dataset.json describes. Restore it or pack again."
            )


def _samples(data: mmap.mmap) -> list[tuple[int, int, int, int]]:
    """``(kind, offset, size, label)`` of every sample: consecutive members of one key."""
    found: list[tuple[int, int, int, int]] = []
    last, kind, place, size, number = None, -1, 0, 0, _NO_LABEL
    for name, offset, length in members(data):
        dot = name.find(b".", name.rfind(b"/") + 1)
        key = name[:dot]
        if dot <= 0 or key.endswith(b"/"):
            continue
        if key != last:
            if last is not None:
                found.append((kind, place, size, number))
            last, kind, place, size, number = key, -1, offset, 0, _NO_LABEL
        extension = name[dot + 1 :].lower().decode("ascii", "replace")
        if extension in IMAGES:
            kind, place, size = IMAGES.index(extension), offset, length
        elif extension in LABELS and number == _NO_LABEL:
            number = _label(data, extension, offset, length)
    if last is not None:
        found.append((kind, place, size, number))
    return found


def _label(data: mmap.mmap, extension: str, offset: int, length: int) -> int:
    if length > LONGEST_LABEL[extension]:
        return _BAD_LABEL
    try:
        value = label(extension, data[offset : offset + length])
    except ValueError:
        return _BAD_LABEL
    return value if _NO_LABEL <= value < 2**31 else _BAD_LABEL


class ShardReader:
    """Decoded samples by (shard, index). Not shared between threads.

    Args:
        shards: to read from; their places in this list are their numbers.
        description: what every image must be like.
        cache: where remote shards are fetched to; None: every shard is a local file.
        keep_open: shards held open; the least recently used is closed first.
        verify: check local shards against their checksums whenever one is opened.

    Raises:
        UserError: the cache cannot hold as many shards as are open.
    """

    def __init__(
        self,
        shards: Sequence[PlacedShard],
        description: DatasetDescription,
        cache: Cache | None = None,
        keep_open: int = 256,
        verify: bool = False,
    ):
        # A quarter of what the process may have open; a shard in the cache takes two.
        keep_open = max(1, min(keep_open, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8))
        self.shards, self.description, self.cache, self.keep_open = shards, description, cache, keep_open
        if cache and cache.cap is not None:
            largest = sorted((placed.shard.bytes for placed in shards if is_remote(placed.place)), reverse=True)
            if (needed := sum(largest[:keep_open])) > cache.cap:
                raise UserError(
                    f"data.cache_gib: up to {len(largest[:keep_open])} shards are read at a time, "
                    f"{needed / 2**30:.3g} GiB. Set it higher, or lower training.lanes or data.shuffle_window."
                )
        self.verify = verify
        self._decoder = ImageDecoder(description)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def read(self, rows: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Images ``(n, C, H, W)`` uint8 below ``description.levels``, labels ``(n,)`` int64 (-1: none), and for
        each broken sample its place in ``rows`` with what is wrong.

        Raises:
            UserError: a whole shard is missing or broken.
        """
        d = self.description
        images = np.empty((len(rows), d.dims), np.uint8)
        labels = np.empty(len(rows), np.int64)
        broken: dict[int, str] = {}
        for i, (shard, index) in enumerate(rows):
            opened = self._opened(shard)
            try:
                labels[i] = self._sample(opened, index, images[i])
            except Broken as error:
                broken[i] = f"{opened.where(index)}: {error}"
        if d.levels < 256 and len(rows):
            for i in (images.max(1) >= d.levels).nonzero()[0].tolist():
                shard, index = rows[i]
                problem = f"level {images[i].max()}, but the data set has levels 0 to {d.levels - 1}"
                broken.setdefault(i, f"{self._opened(shard).where(index)}: {problem}")
        images = images.reshape(-1, d.size, d.size, d.channels).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images), labels, broken

    def _sample(self, opened: OpenShard, index: int, out: np.ndarray) -> int:
        """The image into ``out``; returns the label."""
        kind = opened.kind[index]
        if kind < 0:
            raise Broken(f"no image member (one of {', '.join(IMAGES)})")
        self._decoder.read(opened.file, IMAGES[kind], int(opened.offset[index]), int(opened.size[index]), out)
        number, labels = int(opened.label[index]), opened.placed.labels
        if number == _NO_LABEL:
            return number
        if number == _BAD_LABEL:
            raise Broken("its label is not a whole number from 0 on")
        if number >= len(labels):
            raise Broken(f"label {number}, but the data set has {len(labels)} classes")
        return labels[number]

    def _opened(self, number: int) -> OpenShard:
        opened = self._open.get(number)
        if opened is None:
            while len(self._open) >= self.keep_open:
                self._open.popitem(last=False)[1].close()
            opened = self._open[number] = OpenShard(self.shards[number], self.cache, self.verify)
        else:
            self._open.move_to_end(number)
        return opened
