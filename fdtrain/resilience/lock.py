"""One job at a time in a run's folder: ``RUN/lock`` names the host and the process that have it (docs/clusters.md).

The holder touches the file every few seconds. It is free to take when its process is known to be dead (on this
machine: none of that number and start time), or when it was not touched for a minute by the file system's own clock,
so that hosts need not agree on the time. All this needs is linking and renaming, which NFS has since version 2; no
lock of the kernel's, which many mounts have switched off.
"""

import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from fdtrain import distributed
from fdtrain.errors import UserError

FILE = "lock"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
"""For another job that takes the same stale lock at this moment to be done with it."""


@contextmanager
def held(folder: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Whether a process of another machine lives is seen by watching its lock until it is touched, or has been still
    for ``stale`` seconds. A process that was stopped for so long that another took its lock ends when it wakes.

    Args:
        beat: seconds between two touches.

    Raises:
        UserError: a living process holds it; the message names host and process.
    """
    lock, mine = folder / FILE, _describe()
    _acquire(lock, mine, beat, stale)
    end = threading.Event()
    beater = threading.Thread(target=_beat, args=(lock, mine, beat, end), daemon=True)
    beater.start()
    try:
        yield
    finally:
        end.set()
        beater.join()
        with suppress(FileNotFoundError):
            if _read(lock) == mine:
                lock.unlink()


@contextmanager
def held_for_all(folder: Path) -> Iterator[None]:
    """Rank 0 holds the lock of a run's folder; every rank raises UserError if it cannot."""
    with ExitStack() as stack:
        problem = None
        if distributed.rank() == 0:
            try:
                stack.enter_context(held(folder))
            except UserError as error:
                problem = str(error)
        if problem := distributed.broadcast(problem):
            raise UserError(problem)
        yield


def _acquire(lock: Path, mine: dict[str, Any], beat: float, stale: float) -> None:
    while not _create(lock, mine):
        left = _abandoned(lock, beat, stale)
        if left is None:
            continue
        # Aside, and only then away: two jobs may have found the same stale lock, and one have replaced it since.
        aside = _aside(lock)
        try:
            lock.rename(aside)
        except FileNotFoundError:
            continue
        moved = _read(aside)
        aside.unlink()
        if moved != left:
            _create(lock, moved)
        elif _create(lock, mine):
            time.sleep(SETTLE_SECONDS)
            with suppress(FileNotFoundError):
                if _read(lock) == mine:
                    return


def _abandoned(lock: Path, beat: float, stale: float) -> dict[str, Any] | None:
    """What a lock holds whose holder is dead; None if it has gone meanwhile. Raises UserError if the holder lives."""
    seen, told = None, False
    while True:
        try:
            touched, holder = lock.stat().st_mtime_ns, _read(lock)
        except FileNotFoundError:
            return None
        alive = _alive(holder)
        if alive is None and seen is not None and (touched, holder) != seen:
            alive = True
        if alive:
            raise UserError(
                f"{lock.parent} is in use by process {holder.get('pid')} on host {holder.get('host')} ({lock}). "
                "Wait until it ends or end it, or give this run another name."
            )
        if alive is False or _age(lock) > stale:
            return holder
        if not told:
            told = True
            print(
                f"fdtrain: {lock} is of process {holder.get('pid')} on host {holder.get('host')}; "
                f"watching for up to {stale:g} s whether it is alive",
                file=sys.stderr,
                flush=True,
            )
        seen = touched, holder
        time.sleep(beat / 5)


def _beat(lock: Path, mine: dict[str, Any], beat: float, end: threading.Event) -> None:
    lost = 0
    while not end.wait(beat):
        try:
            holder = _read(lock)
            if holder == mine:
                os.utime(lock)
                lost = 0
                continue
            # Once may be a job that has it in hand, finds it alive and puts it back.
            lost += 1
        except FileNotFoundError:
            lost += 1
            holder = {}
        except OSError:
            # A file server that is away for a while. The lock is looked at again before anything is touched.
            continue
        if lost > 1:
            print(
                f"fdtrain: error: {lock} was taken over by process {holder.get('pid')} on host {holder.get('host')} "
                f"while this one ({mine['pid']} on {mine['host']}) was stopped, or removed by hand; it ends.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


def _create(lock: Path, content: dict[str, Any]) -> bool:
    """Create the lock unless there is one; from the first moment it says whose it is."""
    aside = _aside(lock)
    try:
        aside.write_text(json.dumps(content) + "\n")
        os.link(aside, lock)
        return True
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)


def _aside(lock: Path) -> Path:
    return lock.with_name(f".{FILE}.{uuid4().hex}")


def _read(lock: Path) -> dict[str, Any]:
    """What a lock says; nothing if it is damaged."""
    try:
        content = json.loads(lock.read_text())
        return content if isinstance(content, dict) else {}
    except ValueError:
        return {}


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
    """Whether a lock's process lives; None where it cannot be seen from here."""
    mine = _start(os.getpid())
    if not mine or any(holder.get(key) != mine[key] for key in ("boot", "pids")):
        return None
    return _start(holder["pid"]) == {key: holder.get(key) for key in mine}


def _start(pid: int) -> dict[str, Any]:
    """When a process began, and among which: numbers are given anew after a boot, and in every container."""
    try:
        # After the name, which is in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return {}
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"started": int(fields[19]), "boot": boot, "pids": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}
