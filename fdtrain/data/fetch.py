"""One file from afar: over HTTP, from an object store, through a pipe. Tried again until a deadline."""

import errno
import posixpath
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec

from fdtrain.errors import UserError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries; each pause is twice the one before."""
STALLED = 30.0
"""Seconds without a byte after which a connection counts as lost."""


class Mismatch(Exception):
    """What arrived is not what was expected."""


def is_remote(place: str) -> bool:
    return "://" in place or place.startswith("pipe:")


def shown(place: str) -> str:
    """A place for messages: without the secrets that a URL or a command may hold."""
    if place.startswith("pipe:"):
        return f"pipe: ... {posixpath.basename(place)}"
    scheme, separator, rest = place.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2] if separator else place


def fetch(place: str, into: Path, seconds: float, check: Callable[[Path], None] = lambda path: None) -> None:
    """Copy a whole remote file.

    Args:
        seconds: after which no more is tried, and a copy under way is given up.
        check: raises :class:`Mismatch` on a file that did not arrive as it should; tried once more.

    Raises:
        UserError: it cannot be had: missing, forbidden, not as expected, or the deadline has passed.
    """
    end, pause, mismatches = time.monotonic() + seconds, FIRST_PAUSE, 0
    while True:
        try:
            _copy(place, into, end)
            return check(into)
        except Exception as error:
            mismatches += isinstance(error, Mismatch)
            final = mismatches > 1 or _is_final(error)
            if final or time.monotonic() + pause > end:
                tried = "" if final else f" (tried for {seconds:g} s)"
                raise UserError(f"{shown(place)}: {_reason(error)}{tried}. {_advice(error)}") from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def read_text(place: str, seconds: float) -> str:
    """A small remote text file.

    Raises:
        UserError: as for :func:`fetch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        fetch(place, file, seconds)
        return file.read_text(errors="replace")


def _copy(place: str, into: Path, end: float) -> None:
    if place.startswith("pipe:"):
        with into.open("wb") as file:
            subprocess.run(
                place.removeprefix("pipe:"), shell=True, stdout=file, timeout=end - time.monotonic(), check=True
            )
        return
    system, path = fsspec.core.url_to_fs(place, **_options(place))
    system.get_file(path, str(into), callback=_Deadline(end))


def _options(place: str) -> dict:
    """Give up on a connection that stalls, but not on one that is slow."""
    if place.startswith("http"):
        from aiohttp import ClientTimeout

        return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)}}
    if place.startswith("s3://"):
        return {"config_kwargs": {"connect_timeout": STALLED, "read_timeout": STALLED}}
    return {}


class _Deadline(fsspec.Callback):
    """Told of every piece that arrives."""

    def __init__(self, end: float):
        super().__init__()
        self.end = end

    def relative_update(self, inc: int = 1) -> None:
        if time.monotonic() > self.end:
            raise TimeoutError("too slow")


def _is_final(error: Exception) -> bool:
    """Whether trying again is in vain."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError) or _is_credentials(error):
        return True
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)


def _is_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__ or getattr(error, "status", None) in (401, 403)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with code {error.returncode}"
    if isinstance(status := getattr(error, "status", None), int):
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, subprocess.TimeoutExpired | TimeoutError):
        return "timed out"
    return " ".join(str(error).split()) or type(error).__name__


def _advice(error: Exception) -> str:
    if isinstance(error, PermissionError) or _is_credentials(error):
        return "Check the credentials in the environment, and that they may read it."
    if isinstance(error, FileNotFoundError):
        return "Check data.path; if a shard is gone, restore it or pack again."
    if isinstance(error, ImportError):
        return "Install fdtrain with the extra of that store: fdtrain[s3] or fdtrain[gcs]."
    if isinstance(error, Mismatch):
        return "Upload it again, with the dataset.json it was packed with."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, choose another data.cache, or set data.cache_gib."
    return "Check the network and the server, or give it longer with data.fetch_seconds."
