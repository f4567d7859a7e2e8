"""A folder of fetched shards, shared by all processes of a node, and by jobs.

    SHA256.tar           a complete and verified shard; its modification time is that of its last use,
                         or, of one that was fetched ahead, until when it waits to be read
    SHA256.BYTES.part    a shard that is being fetched
    SHA256.lock          locked by the process that fetches the shard (exclusively) or by its readers (shared)
    room.lock            locked while shards are evicted

A shard is named by its content, so independent data sets can share a cache. The locks are flock's:
they end with the process that has them, however it ends. A shard that is being read is never evicted, and one that
waits to be read only for one that is read now.
"""

import fcntl
import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fdtrain.data.dataset import Shard
from fdtrain.data.fetch import Mismatch, fetch
from fdtrain.data.host import temporary_folder, try_lock
from fdtrain.errors import UserError

THREADS = 4
"""The shards that one process fetches ahead at a time."""
AHEAD_SECONDS = 3600.0
"""For so long a shard that was fetched ahead waits to be read. Whoever wanted it may have ended."""
_PART = re.compile(r"[0-9a-f]{64}\.([0-9]{1,20})\.part")


class Cache:
    """A cache folder, as this module describes it, on a disk of this node.

    ``cap`` is the most bytes in it, for which the least recently used shards are evicted (None: no limit); a shard is
    tried for so many ``seconds``. Raises UserError: the folder cannot be made or written into."""

    def __init__(self, folder: str | Path, cap: int | None, seconds: float):
        self.folder, self.cap, self.seconds = Path(folder), cap, seconds
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        self._lock("room").close()
        self._ahead: queue.SimpleQueue[tuple[Shard, str]] | None = None

    def acquire(self, shard: Shard, place: str) -> tuple[Path, BinaryIO]:
        """The shard's file, fetched if need be, and its lock. Until that is closed the shard is not evicted. Raises
        UserError: it cannot be fetched or stored."""
        path, lock = self._path(shard), self._lock(shard.sha256)
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_complete(path, shard):
                    os.utime(path)
                    return path, lock
                # flock releases the lock before it takes the stronger one: hence the loop, and the second check.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_complete(path, shard):
                    self._fetch(shard, place)
        except BaseException:
            lock.close()
            raise

    def request(self, shards: Iterable[tuple[Shard, str]]) -> None:
        """Fetch these shards, each with its place, in this order and in the background. Nothing waits for that when the
        process ends."""
        if self._ahead is None:
            self._ahead = queue.SimpleQueue()
            for _ in range(THREADS):
                threading.Thread(target=self._fetch_requested, args=(self._ahead,), daemon=True).start()
        for shard, place in shards:
            self._ahead.put((shard, place))

    def _fetch_requested(self, ahead: "queue.SimpleQueue[tuple[Shard, str]]") -> None:
        while True:
            # The reader of the shard tries again, and reports the error.
            with suppress(UserError):
                self.fetch_ahead(*ahead.get())

    def fetch_ahead(self, shard: Shard, place: str) -> None:
        """Fetch a shard for later, unless it is cached or in use."""
        with self._lock(shard.sha256) as lock:
            if try_lock(lock) and not _is_complete(self._path(shard), shard):
                self._fetch(shard, place, ahead=True)

    def _fetch(self, shard: Shard, place: str, ahead: bool = False) -> None:
        """Fetch, verify, and rename into place; the caller holds the shard's lock alone. ``ahead``:
        only if there is room under the cap, which what is read now may exceed where all else is read, too."""
        part = self.folder / f"{shard.sha256}.{shard.bytes}.part"

        def check(path: Path) -> None:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise Mismatch("checksum mismatch: not the file that dataset.json describes")
                os.fsync(file.fileno())

        try:
            if not self._make_room(part, shard.bytes, ahead) and ahead:
                return
            fetch(place, part, self.seconds, shard.bytes, check)
            if ahead:
                until = time.time() + AHEAD_SECONDS
                os.utime(part, (until, until))
            os.replace(part, self._path(shard))
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, part: Path, needed: int, ahead: bool) -> bool:
        """Evict until ``needed`` bytes fit under the cap, and reserve them by the existence of ``part``. Returns
        whether they fit."""
        with self._lock("room") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            total = 0
            if self.cap is not None:
                cached = sorted(_contents(self.folder))
                total = sum(size for *_, size, _ in cached)
                for waits, _, size, path in cached:
                    if total + needed <= self.cap or (waits and ahead):
                        break
                    total -= size if self._evict(path) else 0
            part.touch()
            return self.cap is None or total + needed <= self.cap

    def _evict(self, path: Path) -> bool:
        with self._lock(path.name.partition(".")[0]) as lock:
            if locked := try_lock(lock):
                path.unlink(missing_ok=True)
            return locked

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _lock(self, name: str) -> BinaryIO:
        try:
            return (self.folder / f"{name}.lock").open("a+b")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"data.cache: cannot write into {self.folder} ({error.strerror}). Choose another folder or repair it."
        )


def open_cache(folder: Path | None, cap_gib: float | None, seconds: float, remote: bool) -> Cache | None:
    """The cache for shards of which some are remote: None if all are local; a temporary one if no folder is given."""
    if not remote:
        return None
    return Cache(folder or temporary_folder(), None if cap_gib is None else int(cap_gib * 2**30), seconds)


def _is_complete(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


def _contents(folder: Path) -> Iterator[tuple[bool, float, int, Path]]:
    """In the order in which they are evicted: whether it waits to be read, last use, bytes and path of every shard,
    complete or being fetched. Of those that wait, the last one that was fetched is needed last."""
    for entry in os.scandir(folder):
        part = _PART.fullmatch(entry.name)
        if part or entry.name.endswith(".tar"):
            with suppress(FileNotFoundError):
                status = entry.stat()
                waits = status.st_mtime > time.time()
                used = -status.st_mtime if waits else status.st_mtime
                yield waits, used, int(part[1]) if part else status.st_size, Path(entry.path)
