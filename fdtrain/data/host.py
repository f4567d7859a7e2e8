"""What the processes of a launch on one host share: a temporary folder, and files that one of them makes for all."""

import atexit
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fdtrain import files
from fdtrain.errors import UserError

_held: set[tuple[Path, int]] = set()
"""The folders that are held, and by which process: a child that was forked holds its own."""


def made_once(name: str, make: Callable[[Path], Any]) -> Path:
    """A file that one process of a launch on this host makes at the path that it is given, while the others wait;
    ``name`` fixes its content, within this launch. Where the launcher does not say how many there are, each makes it
    anew. Raises UserError: what ``make`` raised, in all processes; the file cannot be written."""
    # Loaded here: it imports torch, which the packer's processes have no use for.
    from fdtrain.distributed import local_size

    folder, alone = temporary_folder(), local_size() == 1
    path = folder / hashlib.sha256(name.encode()).hexdigest()
    failed = path.with_suffix(".failed")
    with (folder / "made.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if alone or not (path.exists() or failed.exists()):
                files.write_atomically(path, make, durable=False)
        except (OSError, UserError) as error:
            if isinstance(error, OSError):
                advice = "Make room there, or set TMPDIR to another folder."
                error = UserError(f"cannot write into {folder} ({error.strerror}). {advice}")
            with suppress(OSError):
                files.write_text(failed, str(error))
            raise error from None
    if not alone and failed.exists():
        raise UserError(failed.read_text())
    return path


def temporary_folder() -> Path:
    """A folder that the processes of this launch on this node share, removed when the last of them ends.

    Folders of killed launches are removed too.
    """
    # Ranks are children of one launcher.
    folder, owner = Path(tempfile.gettempdir()) / f"fdtrain-{os.getuid()}-{os.getppid()}", os.getpid()
    if (folder, owner) in _held:
        return folder
    for old in folder.parent.glob(f"fdtrain-{os.getuid()}-*"):
        _remove_unused(old)
    while (used := _use(folder)) is None:
        continue
    _held.add((folder, owner))

    def release() -> None:
        if os.getpid() == owner:
            os.close(used)
            _remove_unused(folder)

    atexit.register(release)
    return folder


def _use(folder: Path) -> int | None:
    """Make the folder, and hold it: a descriptor; None if another process has removed it meanwhile."""
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise UserError(f"{folder} is another user's. Set data.cache to a folder of your own.")
        used = os.open(folder / "used.lock", os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        return None
    fcntl.flock(used, fcntl.LOCK_SH)
    if os.fstat(used).st_nlink:
        return used
    os.close(used)
    return None


def _remove_unused(folder: Path) -> None:
    with suppress(OSError), (folder / "used.lock").open("r+b") as lock:
        if try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)


def try_lock(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
