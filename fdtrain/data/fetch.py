"""Fetches one file over HTTP, from an object store or through a pipe, with retries until a deadline; reads small files.

No more is stored than was expected, and no message quotes a server verbatim.
"""

import asyncio
import errno
import io
import ipaddress
import logging
import os
import posixpath
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import Callback

from fdtrain.credentials import masked
from fdtrain.errors import UserError, excerpt

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0
"""Between two tries; each pause is twice the one before."""
STALL_SECONDS = 30.0
"""Without a byte, after which a connection counts as lost."""
SILENT_SECONDS, TOLD_SECONDS = 10.0, 60.0
"""Of tries in vain, after which that is told, and told again."""
CHUNK = 1 << 20
"""The bytes read at a time."""
MAX_TEXT_BYTES = 1 << 24
"""Of a ``dataset.json``, or of a list of shards."""

logger = logging.getLogger(__name__)


class Mismatch(Exception):
    """What arrived is not what was expected."""


class Inward(Exception):
    """A server on the internet leads to an address of this machine, or of its own link."""


def is_remote(place: str) -> bool:
    return "://" in place or place.startswith("pipe:")


def shown(place: str) -> str:
    """A place for messages, without the secrets that a URL or a command may contain."""
    if place.startswith("pipe:"):
        return f"pipe: ... {posixpath.basename(place)}"
    return masked(place)


def fetch(
    place: str, into: Path, seconds: float, max_bytes: int, check: Callable[[Path], None] = lambda path: None
) -> None:
    """Copy a whole remote file. After so many seconds no new try begins, and a running copy is aborted.

    The copy of a file of more than ``max_bytes`` ends there, or one buffer later, with a :class:`Mismatch`; ``check``
    raises it of wrong content. Such a file is fetched once more. Raises UserError: it cannot be fetched: missing,
    forbidden, not as expected, or the deadline has passed."""
    end, pause, mismatches = time.monotonic() + seconds, FIRST_PAUSE_SECONDS, 0
    tell = time.monotonic() + SILENT_SECONDS
    cause: Exception | None = None
    while True:
        try:
            _copy(place, into, end, max_bytes)
            return check(into)
        except Exception as error:
            # A timeout hides the cause that an earlier try may have shown.
            cause = cause if cause is not None and isinstance(error, TimeoutError) else error
            failure = explained(cause)
            mismatches += isinstance(error, Mismatch)
            final = mismatches > 1 or explained(error).final
            if final or time.monotonic() + pause > end:
                tried = "" if final else f" (tried for {seconds:g} s)"
                raise UserError(f"{shown(place)}: {failure.reason}{tried}. {failure.advice}") from cause
        if (now := time.monotonic()) > tell:
            tell = now + TOLD_SECONDS
            logger.warning("%s: %s; trying for %.0f s more", shown(place), failure.reason, end - now)
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


def read_text(place: str, seconds: float) -> str:
    """As :func:`read_file`, a text of at most ``MAX_TEXT_BYTES`` without a byte order mark; bytes that are no UTF-8 are
    replaced."""
    return read_file(place, seconds, MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace")


def read_file(place: str, seconds: float, max_bytes: int) -> bytes:
    """A whole small file; a remote one is tried for so many seconds. Raises UserError: it is missing, no regular file,
    longer, or cannot be read."""
    if is_remote(place):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "file"
            fetch(place, copy, seconds, max_bytes)
            return copy.read_bytes()
    try:
        # A FIFO would wait for its writer.
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        with open(place, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.path: cannot read {excerpt(place)} ({reason}). Correct the path, or restore it."
        ) from error
    if len(data) > max_bytes:
        raise UserError(f"{place} is longer than {max_bytes} bytes: no {Path(place).name} of a data set.")
    return data


def _copy(place: str, into: Path, end: float, max_bytes: int) -> None:
    if place.startswith("pipe:"):
        _copy_output(place.removeprefix("pipe:"), into, end, max_bytes)
        return
    if "::" in place:
        raise ValueError("file systems within others (::) are not read")
    system, path = fsspec.core.url_to_fs(place, skip_instance_cache=True, **_options(place))
    if hasattr(system, "retries"):
        # Its own would use up the time, and hide the cause behind a timeout.
        system.retries = 1
    if system.async_impl:
        asyncio.run(asyncio.wait_for(_copy_async(system, path, into, max_bytes), end - time.monotonic()))
    else:
        with system.open(path, "rb") as source:
            _write_pieces(source.read, into, end, max_bytes)


def _copy_output(command: str, into: Path, end: float, max_bytes: int) -> None:
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert isinstance(process.stdout, io.BufferedReader)
        # The shell and its children.
        kill = partial(os.killpg, process.pid, signal.SIGKILL)
        deadline = threading.Timer(end - time.monotonic(), kill)
        deadline.start()
        try:
            _write_pieces(process.stdout.read1, into, end, max_bytes)
            process.wait()
        except BaseException:
            kill()
            raise
        finally:
            deadline.cancel()
    _check_deadline(end)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _write_pieces(read: Callable[[int], bytes], into: Path, end: float, max_bytes: int) -> None:
    bound = _Bound(max_bytes)
    with into.open("wb") as file:
        while data := read(CHUNK):
            _check_deadline(end)
            bound.relative_update(len(data))
            file.write(data)


def _check_deadline(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError


class _Bound(Callback):
    """Receives the announced length of a file, and how many bytes have arrived."""

    def __init__(self, max_bytes: int):
        super().__init__()
        self.max_bytes = max_bytes

    def set_size(self, size: int | None) -> None:
        if size is not None and size > self.max_bytes:
            raise Mismatch(f"{size} bytes are there, at most {self.max_bytes} are expected")

    def relative_update(self, inc: int = 1) -> None:
        self.value += inc
        if self.value > self.max_bytes:
            raise Mismatch(f"more than {self.max_bytes} bytes arrive, which are all that is expected")


async def _copy_async(system: AsyncFileSystem, path: str, into: Path, max_bytes: int) -> None:
    """In an event loop of its own, all of whose connections end with it.

    The connections of fsspec's shared loop would be open when workers are forked. A worker's copy shares the kernel's
    epoll list with this process, which could then wait for an answer for ever.
    """
    try:
        await system._get_file(path, str(into), callback=_Bound(max_bytes))
    finally:
        session = getattr(system, "_session", None) or getattr(system, "_s3", None)
        if session is not None:
            await session.close()


def _options(place: str) -> dict:
    """Options of a file system for one fetch. A connection that stalls is closed, one that is slow is not."""
    if place.startswith("http"):
        from aiohttp import ClientTimeout

        return {
            "asynchronous": True,
            "get_client": _web_client,
            "client_kwargs": {
                "timeout": ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
            },
        }
    if place.startswith("s3://"):
        return {
            "asynchronous": True,
            "config_kwargs": {
                "connect_timeout": STALL_SECONDS,
                "read_timeout": STALL_SECONDS,
                "retries": {"total_max_attempts": 1},
            },
        }
    return {"asynchronous": True} if place.startswith("gs://") else {}


async def _web_client(**options):
    """A session of which no redirect leads from the internet to this machine or its link, where servers trust whoever
    asks them, as those of a cloud's metadata do."""
    from aiohttp import ClientSession, TCPConnector

    from_internet: list[bool] = []

    def checked(address_info) -> socket.socket:
        family, kind, protocol, _, address = address_info
        ip = ipaddress.ip_address(address[0].partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        from_internet.append(_is_public(ip))
        if from_internet[0] > from_internet[-1] and (ip.is_loopback or ip.is_link_local or ip.is_unspecified):
            raise Inward
        return socket.socket(family, kind, protocol)

    return ClientSession(connector=TCPConnector(socket_factory=checked), **options)


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return ip.is_global


class Failure(NamedTuple):
    """What an error says, in words that no server chose; what to do; whether trying again is useless."""

    reason: str
    advice: str
    final: bool


def explained(error: Exception) -> Failure:
    from aiohttp import ClientPayloadError, InvalidURL, NonHttpUrlClientError, TooManyRedirects
    from aiohttp.http_exceptions import HttpProcessingError

    correct = "Correct data.path: give the place that it should lead to."
    if isinstance(error, FileNotFoundError):
        return Failure("no such file", "Check data.path; if a shard is gone, restore it or pack again.", True)
    if isinstance(error, InvalidURL | NonHttpUrlClientError | TooManyRedirects):
        return Failure("the server redirects in circles, or to what is not on the web", correct, True)
    if isinstance(error, Inward):
        return Failure("the server redirects to an address of this machine or of its link", correct, True)
    if isinstance(error, ssl.CertificateError) or type(error).__name__ == "SSLError":
        own = "For an authority of your own set SSL_CERT_FILE (of s3:// AWS_CA_BUNDLE) to a file with its certificate."
        return Failure("the server's certificate is not trusted here", own, True)
    status, reason = _status(error), excerpt(error) or type(error).__name__
    final = isinstance(error, PermissionError | ImportError | ValueError)
    # aiohttp's message contains the bytes of an answer that is not HTTP, and the status is 400.
    if isinstance(error, ClientPayloadError) or isinstance(error.__cause__, HttpProcessingError):
        reason = "the answer is cut short, or not of HTTP"
    elif isinstance(status, int):
        # In the standard's words, not the server's.
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        reason = f"the server answers {status} {phrase}".rstrip()
        final |= 400 <= status < 500 and status not in (408, 429)
    elif isinstance(error, subprocess.CalledProcessError):
        reason = f"the command ended with code {error.returncode}"
    elif isinstance(error, OSError) and error.strerror:
        reason = excerpt(error.strerror)
    elif isinstance(error, TimeoutError):
        reason = "timed out"
    elif "Parser" in type(error).__name__:
        # botocore's message quotes the answer that is not XML.
        reason = type(error).__name__
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__ or status in (401, 403):
        return Failure(reason, "Check the credentials in the environment, and that they may read it.", True)
    if isinstance(error, ImportError):
        return Failure(reason, "Install fdtrain with the extra of that store: fdtrain[s3] or fdtrain[gcs].", True)
    if isinstance(error, Mismatch):
        return Failure(reason, "Upload it again, with the dataset.json it was packed with.", final)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return Failure(reason, "Free space there, choose another data.cache, or set data.cache_gib.", True)
    return Failure(reason, "Check the network and the server, or give it longer with data.fetch_timeout_s.", final)


def _status(error: Exception) -> object:
    """The HTTP status of a server's answer: aiohttp's, or botocore's behind the error of s3fs."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(error, "status", None)
