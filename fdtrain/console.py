"""Standard output and error of a program whose work is worth more than any line that they do not take."""

import io
import os
import sys
from contextlib import suppress
from typing import Literal


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
