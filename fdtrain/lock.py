"""One process at a time in a folder: ``FOLDER/lock`` names the host and the process that hold it (docs/clusters.md).

The holder touches the file every few seconds. The lock may be taken over when its process is known to be dead (on
this machine: no process has that number and start time), or when it was not touched for a minute, watched by the
monotonic clock of whoever waits: hosts need not agree on the time, and any clock may be set. Where the file system's
clock says so already, a look of ten seconds is enough. All this needs is linking and renaming, which NFS has since
version 2; no lock of the kernel's, which many mounts have switched off.
"""

import errno
import json
import logging
import os
import platform
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from fdtrain.errors import UserError

logger = logging.getLogger(__name__)

FILE = "lock"
GONE = "the lock is gone"
"""A flag of :mod:`fdtrain.resilience.consensus`: a run's lock has disappeared, though nobody else has taken it."""
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
"""Within which another job that found the same stale lock has either taken it or given up."""


@contextmanager
def held(
    folder: Path,
    beat: float = BEAT_SECONDS,
    stale: float = STALE_SECONDS,
    gone: Callable[[], None] | None = None,
    lock: Path | None = None,
) -> Iterator[None]:
    """Hold the lock of a folder.

    A lock of another machine is watched until it is touched, or has not been for ``stale`` seconds. A process that was
    stopped for so long that another took its lock ends when it wakes.

    Args:
        beat: seconds between two touches.
        gone: called once, from a thread, when the lock has disappeared although nobody else has taken it, perhaps
            with its folder; without it that is nothing.
        lock: the file in place of ``folder/lock``, where the folder is replaced as a whole.

    Raises:
        UserError: a living process holds it, and the message names host and process; or it cannot be written or read.
    """
    lock, own = lock or folder / FILE, _describe()
    try:
        _acquire(folder, lock, own, beat, stale)
    except OSError as error:
        raise UserError(
            f"{lock} cannot be written ({error.strerror}). Make room, repair the disk or its permissions, "
            "or choose another folder."
        ) from None
    end = threading.Event()
    beater = threading.Thread(target=_beat, args=(lock, own, beat, end, gone), daemon=True)
    beater.start()
    try:
        yield
    finally:
        end.set()
        beater.join()
        # A lock that a failing disk does not let go is one of a dead process, which others may take over.
        with suppress(OSError):
            if _read(lock) == own:
                lock.unlink()


def _acquire(folder: Path, lock: Path, own: dict[str, Any], beat: float, stale: float) -> None:
    while not _create(lock, own):
        abandoned = _abandoned(folder, lock, beat, stale)
        if abandoned is None:
            continue
        # Renamed before it is deleted: two jobs may have found the same stale lock, and one have replaced it since.
        temporary = _temporary(lock)
        try:
            lock.rename(temporary)
        except FileNotFoundError:
            continue
        moved = _read(temporary)
        temporary.unlink()
        if moved != abandoned:
            _create(lock, moved)
        elif _create(lock, own):
            time.sleep(SETTLE_SECONDS)
            with suppress(FileNotFoundError):
                if _read(lock) == own:
                    return


def _abandoned(folder: Path, lock: Path, beat: float, stale: float) -> dict[str, Any] | None:
    """The content of a lock whose holder is dead; None if it has gone. Raises UserError if the holder lives."""
    before, since = None, time.monotonic()
    while True:
        try:
            if not stat.S_ISREG(lock.lstat().st_mode):
                raise UserError(f"{lock} is in the place of a lock and is no file. Remove it, or rename it.")
            touched, holder = lock.stat().st_mtime_ns, _read(lock)
        except FileNotFoundError:
            return None
        alive = _alive(holder)
        if alive is None and before is not None and (touched, holder) != before:
            alive = True
        owner = _named(holder)
        if alive:
            raise UserError(
                f"{folder} is in use by {owner} ({lock}). Wait until it ends or end it, or choose another name or "
                "folder."
            )
        if alive is False or time.monotonic() - since > (2 * beat if _age(lock) > stale else stale):
            return holder
        if before is None:
            logger.info("%s belongs to %s; watching for up to %g s whether it is alive", lock, owner, stale)
        before = touched, holder
        time.sleep(beat / 5)


def _beat(lock: Path, own: dict[str, Any], beat: float, end: threading.Event, gone: Callable[[], None] | None) -> None:
    missed = 0
    while not end.wait(beat):
        try:
            holder = _read(lock)
            if holder == own:
                os.utime(lock)
                missed = 0
                continue
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            holder = {}
        except OSError:
            # A file server that does not answer for a while. The lock is read again before anything is touched.
            continue
        # Once may be a job that has renamed the lock, finds its holder alive and restores it.
        missed += 1
        if missed == 2 and not holder and gone is not None:
            gone()
        elif missed >= 2 and holder:
            logger.error(
                "error: %s was taken over by %s while this process was stopped; it ends.", lock, _named(holder)
            )
            os._exit(1)


def _create(lock: Path, content: dict[str, Any]) -> bool:
    """Create the lock unless there is one; from the first moment it says whose it is."""
    temporary = _temporary(lock)
    try:
        temporary.write_text(json.dumps(content) + "\n")
        os.link(temporary, lock)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        # No hard links, as on exFAT: for a moment it is empty, and whoever reads it then looks again.
        with suppress(FileExistsError), lock.open("x") as file:
            file.write(json.dumps(content) + "\n")
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(lock: Path) -> Path:
    return lock.with_name(f".{FILE}.{uuid4().hex}")


def _read(lock: Path) -> dict[str, Any]:
    """The content of a lock; empty if it is damaged."""
    try:
        content = json.loads(lock.read_text())
        return content if isinstance(content, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on host {holder.get('host')}"


def _age(lock: Path) -> float:
    """Seconds since it was touched, by the clock that stamped it."""
    with tempfile.TemporaryFile(dir=lock.parent) as now:
        try:
            return os.fstat(now.fileno()).st_mtime - lock.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _describe() -> dict[str, Any]:
    """This process, so that others can tell whether it lives."""
    return {"host": platform.node(), "pid": os.getpid(), **_start(os.getpid()), "token": uuid4().hex}


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether a lock's process lives; None where this cannot be known from here, or the lock is damaged."""
    own = _start(os.getpid())
    if not own or type(holder.get("pid")) is not int or any(holder.get(key) != own[key] for key in ("boot", "pids")):
        return None
    return _start(holder["pid"]) == {key: holder.get(key) for key in own}


def _start(pid: int) -> dict[str, Any]:
    """A process's start time, boot and PID namespace: numbers are given again after a boot, and in containers."""
    fields = process_fields(pid)
    if fields[:1] in ([], ["Z"]):
        return {}
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"started": int(fields[19]), "boot": boot, "pids": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def process_fields(pid: int) -> list[str]:
    """State, parent and further fields of a process; nothing if there is none."""
    try:
        # After the name, which is in parentheses and may contain anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
