"""Random access to the samples of WebDataset shards.

A sample is the members of a tar that share a key: an image (``KEY.npy``, ``KEY.png``...) and its label
(``KEY.cls`` or ``KEY.json``), see :mod:`fdtrain.data.members`. Any other member is ignored. webdataset's own readers
go through a shard from its beginning, so resuming in the middle would decode everything before;
here a shard is indexed once and any sample is read in place.
"""

import errno
import hashlib
import mmap
import os
import resource
import stat
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fdtrain.data.cache import Cache
from fdtrain.data.dataset import DatasetDescription, Shard
from fdtrain.data.decode import IMAGES, Broken, ImageDecoder
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.members import BAD_LABEL, NO_LABEL, ORDINARY, MemberReader
from fdtrain.data.tar import BLOCK, BadTar, members
from fdtrain.errors import UserError, excerpt


@dataclass(frozen=True)
class PlacedShard:
    """A shard, its place (a path, a URL or ``pipe:`` command), its labels among the run's classes, and its members."""

    shard: Shard
    place: str
    labels: range
    members: MemberReader = ORDINARY

    @property
    def name(self) -> str:
        """The place for messages, without the secrets that a URL or command may contain."""
        return shown(self.place)


class OpenShard:
    """One tar file, indexed by its headers. Samples are read by ``pread``: a mapping would count as memory.

    ``kind`` indexes ``IMAGES`` (-1: no image), ``offset`` and ``size`` place the image, in bytes. ``verify`` checks a
    local shard against its checksum; a fetched one was checked when it arrived.
    """

    def __init__(self, placed: PlacedShard, cache: Cache | None, verify: bool = False):
        self.placed = placed
        path, self._lock = placed.place, None
        if is_remote(placed.place):
            if cache is None:
                raise ValueError(f"{placed.name} is remote, and is read through a cache")
            path, self._lock = cache.acquire(placed.shard, placed.place)
        self.file = -1
        try:
            # Opening a FIFO would wait for its writer.
            self.file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(self.file).st_mode):
                raise UserError(f"{self.placed.name} is no regular file. Restore it or pack again.")
            if verify and self._lock is None:
                self._verify()
            self._index()
        except FileNotFoundError:
            self.close()
            raise UserError(f"{path} has disappeared. Restore it or pack again.") from None
        except OSError as error:
            self.close()
            full = error.errno in (errno.EMFILE, errno.ENFILE)
            advice = "Raise the limit of open files (ulimit -n)" if full else "Restore it, or correct its permissions"
            raise UserError(f"{placed.name} cannot be read ({error.strerror}). {advice}.") from error
        except ValueError as error:
            self.close()
            raise UserError(
                f"{placed.name} cannot be read as a tar file ({error}). Restore it or pack again."
            ) from error
        except BaseException:
            self.close()
            raise

    def _index(self) -> None:
        with mmap.mmap(self.file, 0, access=mmap.ACCESS_READ) as data:
            samples = _samples(data, self.placed.members)
        self.kind, self.offset, self.size, self.label = np.array(samples, dtype=np.int64).reshape(-1, 4).T.copy()
        if len(self.kind) != self.placed.shard.images:
            raise UserError(
                f"{self.placed.name} holds {len(self.kind)} samples, dataset.json says {self.placed.shard.images}. "
                "Restore it or pack again."
            )

    def _verify(self) -> None:
        with os.fdopen(os.dup(self.file), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.placed.shard.sha256:
                raise UserError(
                    f"{self.placed.name}: checksum mismatch: not the file that dataset.json describes. "
                    "Restore it or pack again."
                )

    def where(self, index: int) -> str:
        """A sample for messages: the shard and the key."""
        header = os.pread(self.file, BLOCK, int(self.offset[index]) - BLOCK)
        key = header[:100].partition(b"\0")[0].rpartition(b"/")[2].partition(b".")[0]
        return f"{self.placed.name}, sample '{excerpt(key)}'"

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        if self._lock is not None:
            os.close(self._lock)


def _samples(data: mmap.mmap, reader: MemberReader) -> array:
    """``kind, offset, size, label`` of every sample, one after another: consecutive members of one key.

    Raises:
        BadTar: no tar; or a second image or label of one key, as where two samples of one key meet.
    """
    samples = array("q")
    images, labels = reader.images, reader.labels
    last, kind, place, size, number, labelled_by = None, -1, 0, 0, NO_LABEL, None
    for name, offset, length in members(data):
        first = name.rfind(b"/") + 1
        dot = name.find(b".", first)
        if dot <= first:
            continue
        key = name[:dot]
        if key != last:
            if last is not None:
                samples.extend((kind, place, size, number))
            last, kind, place, size, number, labelled_by = key, -1, offset, 0, NO_LABEL, None
        extension = name[dot + 1 :].lower()
        if extension in images:
            if kind >= 0:
                raise BadTar(f"two images of one key, '{excerpt(key)}'")
            kind, place, size = images[extension], offset, length
        elif extension in labels:
            if extension == labelled_by:
                raise BadTar(f"two labels of one key, '{excerpt(key)}'")
            # A .cls comes before a .json.
            if labelled_by is None or labels[extension]:
                number, labelled_by = BAD_LABEL, extension
                if length <= reader.longest(extension):
                    number = reader.number(extension, data[offset : offset + length])
    if last is not None:
        samples.extend((kind, place, size, number))
    return samples


class ShardReader:
    """Decoded samples by (shard, index). Not shared between threads.

    Args:
        shards: the shards to read; their indices in this list are their numbers.
        description: the properties that every image must have.
        cache: where remote shards are fetched to; None: every shard is a local file.
        keep_open: the number of open shards; the least recently used is closed first.
        verify: check local shards against their checksums whenever one is opened.

    Raises:
        UserError: the cache is too small for as many shards as are open.
    """

    def __init__(
        self,
        shards: Sequence[PlacedShard],
        description: DatasetDescription,
        cache: Cache | None = None,
        keep_open: int = 256,
        verify: bool = False,
    ):
        # A quarter of the files that the process may open; a shard in the cache takes two.
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
        self._decoder = ImageDecoder(description.size, description.channels)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def read(
        self, rows: Sequence[tuple[int, int]], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Images ``(n, C, H, W)`` uint8 below ``description.levels``, labels ``(n,)`` int64 (-1: none), and for
        each broken sample its index in ``rows`` with the problem.

        Args:
            out: an array for the images; None: a new one.

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
        if out is None:
            out = np.empty((len(rows), *d.shape), np.uint8)
        np.copyto(out, images.reshape(-1, d.size, d.size, d.channels).transpose(0, 3, 1, 2))
        return out, labels, broken

    def _sample(self, opened: OpenShard, index: int, out: np.ndarray) -> int:
        """The image into ``out``; returns the label."""
        kind = opened.kind.item(index)
        if kind < 0:
            raise Broken(f"no image member (one of {', '.join(IMAGES)})")
        self._decoder.read(opened.file, IMAGES[kind], opened.offset.item(index), opened.size.item(index), out)
        number, labels = opened.label.item(index), opened.placed.labels
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
