"""Random access to the samples of WebDataset shards.

What is a sample says :mod:`fdtrain.data.members`. webdataset's own readers go through a shard from its beginning, so
resuming in the middle would decode everything before; here a shard is indexed once and any sample is read in place.
"""

import hashlib
import mmap
import os
import resource
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fdtrain.data import shard_index
from fdtrain.data.cache import Cache
from fdtrain.data.dataset import DatasetDescription, check_length, join
from fdtrain.data.decode import IMAGES, Broken, ImageDecoder
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.members import BAD_LABEL, NO_LABEL, MemberReader
from fdtrain.data.shard_index import Samples
from fdtrain.data.shard_table import Shard, ShardTable
from fdtrain.data.tar import BLOCK
from fdtrain.errors import UserError, excerpt


@dataclass(frozen=True)
class PlacedShard:
    """A shard, its place (a path, a URL or ``pipe:`` command), its labels among the run's classes, its members, and the
    folder of its data set, if that is on this machine."""

    shard: Shard
    place: str
    labels: range
    members: MemberReader
    folder: Path | None

    @property
    def name(self) -> str:
        """The place for messages, without the secrets that a URL or command may contain."""
        return shown(self.place)


class PlacedShards(Sequence[PlacedShard]):
    """The shards of one split of one data set, each of which is placed when it is asked for.

    Args:
        base: the folder or URL of the data set.
        places: of shards that are elsewhere than their description says, by their files.
    """

    def __init__(self, shards: ShardTable, base: str, places: Mapping[str, str], labels: range, members: MemberReader):
        self.shards, self.base, self.places, self.labels, self.members = shards, base, places, labels, members
        self._folder = None if is_remote(base) else Path(base)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: Any) -> Any:
        shard = self.shards[index]
        place = self.places.get(shard.file) or shard.place or shard.file
        if not is_remote(place) and not place.startswith("/"):
            place = join(self.base, place)
        return PlacedShard(shard, place, self.labels, self.members, self._folder)

    @property
    def images(self) -> np.ndarray:
        """The number of images of each shard."""
        return self.shards.images

    @property
    def remote_lengths(self) -> np.ndarray:
        """The bytes of each shard that is not on this machine."""
        if not self.places and not self.shards.rows["place"].any():
            return self.shards.rows["bytes"] if is_remote(self.base) else np.empty(0, np.int64)
        return np.array([placed.shard.bytes for placed in self if is_remote(placed.place)], np.int64)


class ChainedShards(Sequence[PlacedShard]):
    """The shards of one split of each data set of a run, numbered one set after another."""

    def __init__(self, parts: Sequence[PlacedShards]):
        self.parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - (int(self._ends[part - 1]) if part else 0)]

    @property
    def images(self) -> np.ndarray:
        return np.concatenate([part.images for part in self.parts])

    @property
    def remote_lengths(self) -> np.ndarray:
        return np.concatenate([part.remote_lengths for part in self.parts])


class OpenShard:
    """One tar file and the places of its samples: from its index, or else by its headers. Samples are read by
    ``pread``: a mapping would count as memory.

    ``verify`` checks a local shard against its checksum (a fetched one was checked when it arrived), and goes by its
    headers.
    """

    def __init__(self, placed: PlacedShard, cache: Cache | None, verify: bool = False):
        self.placed, self._closing = placed, ExitStack()
        path = placed.place
        with self._closing:
            if is_remote(placed.place):
                assert cache is not None
                path, lock = cache.acquire(placed.shard, placed.place)
                self._closing.enter_context(lock)
            self.samples = self._opened(Path(path), verify)
            self._closing = self._closing.pop_all()

    def _opened(self, path: Path, verify: bool) -> Samples:
        placed, samples = self.placed, None
        check_length(path, placed.shard)
        try:
            file = self._closing.enter_context(path.open("rb", buffering=0))
            self.file = file.fileno()
            if verify and not is_remote(placed.place):
                if hashlib.file_digest(file, "sha256").hexdigest() != placed.shard.sha256:
                    raise UserError(f"{placed.name}: checksum mismatch. Restore it or pack again.")
            elif placed.folder is not None:
                place = shard_index.place(placed.folder, placed.shard.file)
                samples = shard_index.read(place, placed.shard, self.file, placed.members)
            return samples or self._scanned()
        except OSError as error:
            name = error.filename or placed.name
            raise UserError(f"{name} cannot be read ({error.strerror}). Correct that, or restore the file.") from error
        except ValueError as error:
            raise UserError(
                f"{placed.name} cannot be read as a tar file ({error}). Restore it or pack again."
            ) from error

    def _scanned(self) -> Samples:
        with mmap.mmap(self.file, 0, access=mmap.ACCESS_READ) as data:
            samples = self.placed.members.scan(data)
        samples = Samples(*np.array(samples, dtype=np.int64).reshape(-1, 4).T.copy())
        if len(samples.kind) != self.placed.shard.images:
            raise UserError(
                f"{self.placed.name} holds {len(samples.kind)} samples, dataset.json says {self.placed.shard.images}. "
                "Restore it or pack again."
            )
        return samples

    def where(self, index: int) -> str:
        """A sample for messages: the shard and the key."""
        header = os.pread(self.file, BLOCK, int(self.samples.offset[index]) - BLOCK)
        key = header[:100].partition(b"\0")[0].rpartition(b"/")[2].partition(b".")[0]
        return f"{self.placed.name}, sample '{excerpt(key)}'"

    def close(self) -> None:
        self._closing.close()


class ShardReader:
    """Decoded samples by (shard, index). Not shared between threads.

    Shards have the numbers of their places in ``shards``; remote ones are fetched to the ``cache``. Up to ``keep_open``
    are open, of which the least recently used is closed first; ``verify`` checks local ones against their checksums
    whenever one is opened. Raises UserError: the cache is too small for as many shards as are open."""

    def __init__(
        self,
        shards: PlacedShards | ChainedShards,
        description: DatasetDescription,
        cache: Cache | None = None,
        keep_open: int = 256,
        verify: bool = False,
    ):
        # A quarter of the files that the process may open; a shard in the cache takes two.
        keep_open = max(1, min(keep_open, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8))
        self.shards, self.description, self.cache, self.keep_open = shards, description, cache, keep_open
        if cache and cache.cap is not None:
            largest = np.sort(shards.remote_lengths)[-keep_open:]
            if (needed := int(largest.sum())) > cache.cap:
                raise UserError(
                    f"data.cache_gib: up to {len(largest)} shards are read at a time, "
                    f"{needed / 2**30:.3g} GiB. Set it higher, or lower training.lanes or data.shuffle_window."
                )
        self.verify = verify
        self._decoder = ImageDecoder(description.size, description.channels)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def read(
        self, rows: Sequence[tuple[int, int]], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Images ``(n, C, H, W)`` uint8 below ``description.levels``, labels ``(n,)`` int64 (-1: none), and for
        each broken sample its index in ``rows`` with the problem. ``out`` is an array for the images. Raises UserError:
        a whole shard is missing or broken."""
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
        if out is None:
            out = np.empty((len(rows), *d.shape), np.uint8)
        np.copyto(out, images.reshape(-1, d.size, d.size, d.channels).transpose(0, 3, 1, 2))
        return out, labels, broken

    def _sample(self, opened: OpenShard, index: int, out: np.ndarray) -> int:
        """The image into ``out``; returns the label."""
        samples = opened.samples
        kind = samples.kind.item(index)
        if kind < 0:
            raise Broken(f"no image member (one of {', '.join(IMAGES)})")
        self._decoder.read(opened.file, IMAGES[kind], samples.offset.item(index), samples.size.item(index), out)
        number, labels = samples.label.item(index), opened.placed.labels
        if number == NO_LABEL:
            return number
        if number == BAD_LABEL:
            raise Broken("its label is not a whole number from 0 on, nor the name of a class")
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
