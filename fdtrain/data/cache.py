"""A folder of fetched shards, shared by all processes of a node, and by jobs.

    SHA256.tar           a shard, complete and verified; its time of change is that of its last use
    SHA256.BYTES.part    one that is being fetched
    SHA256.lock          locked by whoever fetches (alone) or reads (together) that shard
    room.lock            held while room is made

A shard is named by its contents: data sets share a cache without knowing of each other. The locks are flock's:
they end with the process that holds them, however it ends. A shard that someone reads is never evicted.
"""

import atexit
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fdtrain.data.dataset import Shard
from fdtrain.data.fetch import Mismatch, fetch, is_remote
from fdtrain.errors import UserError

_PART = re.compile(r"[0-9a-f]{64}\.([0-9]{1,20})\.part")


class Cache:
    """See the module.

    Args:
        folder: on a disk of this node.
        cap: most bytes it may hold; the least recently used shards go first. None: no limit.
        seconds: to try to fetch one shard for.

    Raises:
        UserError: the folder cannot be made or written into.
    """

    def __init__(self, folder: str | Path, cap: int | None, seconds: float):
        self.folder, self.cap, self.seconds = Path(folder), cap, seconds
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        os.close(self._open_lock("room"))

    def acquire(self, shard: Shard, place: str) -> tuple[Path, int]:
        """The shard's file, fetched if it is not there, and a descriptor: until that is closed it is not evicted.

        Raises:
            UserError: it cannot be fetched or stored.
        """
        path, lock = self._path(shard), self._open_lock(shard.sha256)
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_whole(path, shard):
                    os.utime(path)
                    return path, lock
                # flock lets go before it takes the stronger lock: hence the loop, and the second look.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(path, shard):
                    self._fetch(shard, place)
        except BaseException:
            os.close(lock)
            raise

    def fetch_ahead(self, shard: Shard, place: str) -> None:
        """Fetch a shard for later, unless it is there or someone is at it."""
        with self._alone(shard.sha256) as alone:
            if alone and not _is_whole(self._path(shard), shard):
                self._fetch(shard, place, ahead=True)

    def _fetch(self, shard: Shard, place: str, ahead: bool = False) -> None:
        """Fetch, verify, and rename into place; the caller holds the shard's lock alone.

        Args:
            ahead: only if there is room under the cap. What is read now may exceed it where all else is read, too.
        """
        part = self.folder / f"{shard.sha256}.{shard.bytes}.part"

        def check(path: Path) -> None:
            if (found := path.stat().st_size) != shard.bytes:
                raise Mismatch(f"{found} bytes arrived, dataset.json says {shard.bytes}")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise Mismatch("checksum mismatch: not the file that dataset.json describes")
                os.fsync(file.fileno())

        try:
            if not self._make_room(part, shard.bytes) and ahead:
                return
            fetch(place, part, self.seconds, shard.bytes, check)
            os.replace(part, self._path(shard))
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, part: Path, needed: int) -> bool:
        """Evict until ``needed`` bytes fit under the cap, and reserve them by the existence of ``part``.

        Returns: whether they fit.
        """
        room = self._open_lock("room")
        try:
            fcntl.flock(room, fcntl.LOCK_EX)
            total = 0
            if self.cap is not None:
                kept = sorted(_contents(self.folder))
                total = sum(size for _, size, _ in kept)
                for _, size, path in kept:
                    if total + needed <= self.cap:
                        break
                    total -= size if self._evict(path) else 0
            part.touch()
            return self.cap is None or total + needed <= self.cap
        finally:
            os.close(room)

    def _evict(self, path: Path) -> bool:
        with self._alone(path.name.partition(".")[0]) as alone:
            if alone:
                path.unlink(missing_ok=True)
            return alone

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _open_lock(self, name: str) -> int:
        try:
            return os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"data.cache: cannot write into {self.folder} ({error.strerror}). Choose another folder or repair it."
        )

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Whether the lock could be had at once, for the time of the block."""
        lock = self._open_lock(name)
        try:
            yield _try_lock(lock)
        finally:
            os.close(lock)


def open_cache(folder: Path | None, cap_gib: float | None, seconds: float, places: Iterable[str]) -> Cache | None:
    """The cache that shards at these places need: none if all are local; a temporary one if no folder is given."""
    if not any(is_remote(place) for place in places):
        return None
    return Cache(folder or temporary_folder(), None if cap_gib is None else int(cap_gib * 2**30), seconds)


def temporary_folder() -> Path:
    """A folder that the processes of this launch on this node share, removed when the last of them ends.

    What killed launches have left is removed too.
    """
    for old in Path(tempfile.gettempdir()).glob(f"fdtrain-{os.getuid()}-*"):
        _remove_unused(old)
    # Ranks are children of one launcher.
    folder = Path(tempfile.gettempdir()) / f"fdtrain-{os.getuid()}-{os.getppid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{folder} is another user's. Set data.cache to a folder of your own.")
    used = os.open(folder / "used.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(used, fcntl.LOCK_SH)
    owner = os.getpid()

    def leave() -> None:
        if os.getpid() == owner:
            os.close(used)
            _remove_unused(folder)

    atexit.register(leave)
    return folder


def _remove_unused(folder: Path) -> None:
    try:
        lock = os.open(folder / "used.lock", os.O_RDWR)
    except OSError:
        return
    try:
        if _try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


def _contents(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, bytes and path of every shard, there or on its way."""
    for entry in os.scandir(folder):
        try:
            if entry.name.endswith(".tar"):
                yield entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)
            elif found := _PART.fullmatch(entry.name):
                yield entry.stat().st_mtime, int(found[1]), Path(entry.path)
        except FileNotFoundError:
            continue
