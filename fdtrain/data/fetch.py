"""One file from afar: over HTTP, from an object store, through a pipe. Tried again until a deadline."""

import asyncio
import errno
import posixpath
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
from fsspec.asyn import AsyncFileSystem

from fdtrain.credentials import masked
from fdtrain.errors import UserError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries; each pause is twice the one before."""
STALLED = 30.0
"""Seconds without a byte after which a connection counts as lost."""
TIMED_OUT = subprocess.TimeoutExpired | TimeoutError


class Mismatch(Exception):
    """What arrived is not what was expected."""


def is_remote(place: str) -> bool:
    return "://" in place or place.startswith("pipe:")


def shown(place: str) -> str:
    """A place for messages: without the secrets that a URL or a command may hold."""
    if place.startswith("pipe:"):
        return f"pipe: ... {posixpath.basename(place)}"
    return masked(place)


def fetch(place: str, into: Path, seconds: float, check: Callable[[Path], None] = lambda path: None) -> None:
    """Copy a whole remote file.

    Args:
        seconds: after which no more is tried, and a copy under way is given up.
        check: raises :class:`Mismatch` on a file that did not arrive as it should; tried once more.

    Raises:
        UserError: it cannot be had: missing, forbidden, not as expected, or the deadline has passed.
    """
    end, pause, mismatches = time.monotonic() + seconds, FIRST_PAUSE, 0
    met: Exception | None = None
    while True:
        try:
            _copy(place, into, end)
            return check(into)
        except Exception as error:
            # A try that was cut off says nothing of what is wrong, where one before it does.
            met = met if met is not None and isinstance(error, TIMED_OUT) else error
            mismatches += isinstance(error, Mismatch)
            final = mismatches > 1 or _is_final(error)
            if final or time.monotonic() + pause > end:
                tried = "" if final else f" (tried for {seconds:g} s)"
                raise UserError(f"{shown(place)}: {_reason(met)}{tried}. {_advice(met)}") from met
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
    system, path = fsspec.core.url_to_fs(place, skip_instance_cache=True, **_options(place))
    if system.async_impl:
        asyncio.run(asyncio.wait_for(_copy_async(system, path, into), end - time.monotonic()))
    else:
        system.get_file(path, str(into))


async def _copy_async(system: AsyncFileSystem, path: str, into: Path) -> None:
    """In an event loop of its own, all of whose connections end with it.

    Those of fsspec's shared loop would be open when workers are forked, and what a worker then does to its copy
    leaves this process waiting for an answer: the two share the kernel's list of what to watch.
    """
    try:
        await system._get_file(path, str(into))
    finally:
        session = getattr(system, "_session", None) or getattr(system, "_s3", None)
        if session is not None:
            await session.close()


def _options(place: str) -> dict:
    """Private to one fetch; gives up on a connection that stalls, but not on one that is slow."""
    if place.startswith("http"):
        from aiohttp import ClientTimeout

        return {
            "asynchronous": True,
            "client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)},
        }
    if place.startswith("s3://"):
        return {"asynchronous": True, "config_kwargs": {"connect_timeout": STALLED, "read_timeout": STALLED}}
    return {"asynchronous": True} if place.startswith("gs://") else {}


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
    if isinstance(error, TIMED_OUT):
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
    return "Check the network and the server, or give it longer with data.fetch_timeout_s."
