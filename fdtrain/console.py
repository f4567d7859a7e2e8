"""Standard output and error: of a program whose work is worth more than any line that they do not take, and that is
not silent for long."""

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

logger = logging.getLogger(__name__)

SILENCE = 4.0
"""Seconds after which a phase says that it is still at work."""

_phases: list[str] = []


class _Lossy(io.FileIO):
    """Loses what cannot be written: to a full disk, a pipe whose reader has gone, a terminal that was closed."""

    def write(self, data) -> int:
        try:
            # None where it would have to wait, in a descriptor that others have set so.
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def lose_what_fails(name: Literal["stdout", "stderr"]) -> None:
    """From now on this stream of ``sys`` raises no OSError, not even when the interpreter flushes it at its end.

    One that was closed is open again, so that no file of the program's takes its number. What a test or a notebook has
    put in its place stays.
    """
    stream, number = getattr(sys, name), {"stdout": 1, "stderr": 2}[name]
    if stream is None:
        while (opened := os.open(os.devnull, os.O_WRONLY)) < number:
            continue
        stream = os.fdopen(opened, "w")
    elif not _leads_to(stream, number):
        return
    with suppress(OSError):
        stream.flush()
    buffer = io.BufferedWriter(_Lossy(stream.fileno(), "wb", closefd=False))
    setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=True))


def _leads_to(stream, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False


def watched() -> bool:
    """Whether stderr is read by a person while it is written: at a terminal, or in a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Around work without a progress bar: log what it is every few seconds. Of phases within one another the inner one
    speaks."""
    begin, end, depth = time.monotonic(), threading.Event(), len(_phases)
    _phases.append(what)

    def speak() -> None:
        while not end.wait(SILENCE):
            if len(_phases) == depth + 1:
                logger.info("%s ... %.0f s", what, time.monotonic() - begin)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        end.set()
        speaker.join()
        _phases.pop()
