"""One file from afar: over HTTP, from an object store, through a pipe. Tried again until a deadline.

No more is stored than was to be expected, and what a server says reaches no message as it stands.
"""

import asyncio
import errno
import os
import posixpath
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import Callback

from fdtrain.credentials import masked
from fdtrain.errors import UserError, excerpt

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries; each pause is twice the one before."""
STALLED = 30.0
"""Seconds without a byte after which a connection counts as lost."""
PIECE = 1 << 20
"""Bytes read at a time."""


class Mismatch(Exception):
    """What arrived is not what was expected."""


def is_remote(place: str) -> bool:
    return "://" in place or place.startswith("pipe:")


def shown(place: str) -> str:
    """A place for messages: without the secrets that a URL or a command may hold."""
    if place.startswith("pipe:"):
        return f"pipe: ... {posixpath.basename(place)}"
    return masked(place)


def fetch(place: str, into: Path, seconds: float, most: int, check: Callable[[Path], None] = lambda path: None) -> None:
    """Copy a whole remote file.

    Args:
        seconds: after which no more is tried, and a copy under way is given up.
        most: bytes; of a longer file the copy ends there (or one buffer later), as a :class:`Mismatch`.
        check: raises :class:`Mismatch` on a file that did not arrive as it should; tried once more.

    Raises:
        UserError: it cannot be had: missing, forbidden, not as expected, or the deadline has passed.
    """
    end, pause, mismatches = time.monotonic() + seconds, FIRST_PAUSE, 0
    met: Exception | None = None
    while True:
        try:
            _copy(place, into, end, most)
            return check(into)
        except Exception as error:
            # A try that was cut off says nothing of what is wrong, where one before it does.
            met = met if met is not None and isinstance(error, TimeoutError) else error
            mismatches += isinstance(error, Mismatch)
            final = mismatches > 1 or _is_final(error)
            if final or time.monotonic() + pause > end:
                tried = "" if final else f" (tried for {seconds:g} s)"
                raise UserError(f"{shown(place)}: {_reason(met)}{tried}. {_advice(met)}") from met
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def fetch_text(place: str, seconds: float, most: int) -> str:
    """A small remote text file.

    Raises:
        UserError: as for :func:`fetch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        fetch(place, file, seconds, most)
        return file.read_text(errors="replace")


def _copy(place: str, into: Path, end: float, most: int) -> None:
    if place.startswith("pipe:"):
        _copy_output(place.removeprefix("pipe:"), into, end, most)
        return
    if "::" in place:
        raise ValueError("file systems within others (::) are not read")
    system, path = fsspec.core.url_to_fs(place, skip_instance_cache=True, **_options(place))
    if system.async_impl:
        asyncio.run(asyncio.wait_for(_copy_async(system, path, into, most), end - time.monotonic()))
    else:
        with system.open(path, "rb") as source, into.open("wb") as file:

            def read() -> bytes:
                _check_deadline(end)
                return source.read(PIECE)

            _write_pieces(read, file, most)


def _copy_output(command: str, into: Path, end: float, most: int) -> None:
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)

        def read() -> bytes:
            _check_deadline(end)
            while not poll.poll(100):
                _check_deadline(end)
            return os.read(output, PIECE)

        try:
            with into.open("wb") as file:
                _write_pieces(read, file, most)
            code = process.wait(max(0.0, end - time.monotonic()))
        except BaseException as error:
            # The shell and what it has started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError from error
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def _write_pieces(read: Callable[[], bytes], file: BinaryIO, most: int) -> None:
    bound = _Bound(most)
    while data := read():
        bound.relative_update(len(data))
        file.write(data)


def _check_deadline(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError


class _Bound(Callback):
    """Told how long a file is said to be, and how much has come."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def set_size(self, size: int | None) -> None:
        if size is not None and size > self.most:
            raise Mismatch(f"{size} bytes are there, at most {self.most} are expected")

    def relative_update(self, inc: int = 1) -> None:
        self.value += inc
        if self.value > self.most:
            raise Mismatch(f"more than {self.most} bytes arrive, which are all that is expected")


async def _copy_async(system: AsyncFileSystem, path: str, into: Path, most: int) -> None:
    """In an event loop of its own, all of whose connections end with it.

    Those of fsspec's shared loop would be open when workers are forked, and what a worker then does to its copy
    leaves this process waiting for an answer: the two share the kernel's list of what to watch.
    """
    try:
        await system._get_file(path, str(into), callback=_Bound(most))
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
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or _is_astray(error):
        return True
    status = getattr(error, "status", None)
    # aiohttp gives an answer that is not of HTTP the status 400.
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429) and not _is_misframed(error)


def _is_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__ or getattr(error, "status", None) in (401, 403)


def _is_astray(error: Exception) -> bool:
    """Whether a server leads in circles, or to what is not on the web."""
    from aiohttp import InvalidURL, NonHttpUrlClientError, TooManyRedirects

    return isinstance(error, InvalidURL | NonHttpUrlClientError | TooManyRedirects)


def _is_misframed(error: Exception) -> bool:
    """Whether an answer is not one of HTTP; aiohttp's message then holds its bytes."""
    from aiohttp import ClientPayloadError
    from aiohttp.http_exceptions import HttpProcessingError

    return isinstance(error, ClientPayloadError) or isinstance(error.__cause__, HttpProcessingError)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with code {error.returncode}"
    if _is_astray(error):
        return "the server redirects in circles, or to what is not on the web"
    if _is_misframed(error):
        return "the answer is cut short, or not of HTTP"
    if isinstance(status := getattr(error, "status", None), int):
        # In the standard's words, not the server's.
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        return f"the server answers {status} {phrase}".rstrip()
    if isinstance(error, OSError) and error.strerror:
        return excerpt(error.strerror)
    if isinstance(error, TimeoutError):
        return "timed out"
    # botocore's says what was no XML.
    return type(error).__name__ if "Parser" in type(error).__name__ else excerpt(error) or type(error).__name__


def _advice(error: Exception) -> str:
    if isinstance(error, PermissionError) or _is_credentials(error):
        return "Check the credentials in the environment, and that they may read it."
    if isinstance(error, FileNotFoundError):
        return "Check data.path; if a shard is gone, restore it or pack again."
    if isinstance(error, ImportError):
        return "Install fdtrain with the extra of that store: fdtrain[s3] or fdtrain[gcs]."
    if _is_astray(error):
        return "Correct data.path: give the place that it should lead to."
    if isinstance(error, Mismatch):
        return "Upload it again, with the dataset.json it was packed with."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, choose another data.cache, or set data.cache_gib."
    return "Check the network and the server, or give it longer with data.fetch_timeout_s."
