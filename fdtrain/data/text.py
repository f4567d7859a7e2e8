"""Small files beside the shards, local or remote, read up to a limit."""

import os
import stat
from pathlib import Path

from fdtrain.data.fetch import fetch_bytes, is_remote, shown
from fdtrain.errors import UserError, excerpt

MAX_BYTES = 1 << 24
"""Of a ``dataset.json``."""


def read_text(place: str, seconds: float) -> str:
    """As :func:`read_file`, a text of at most ``MAX_BYTES`` without a byte order mark; bytes that are no UTF-8 are
    replaced."""
    return read_file(place, seconds, MAX_BYTES).decode("utf-8-sig", errors="replace")


def read_file(place: str, seconds: float, most: int) -> bytes:
    """A whole file of at most so many bytes.

    Args:
        seconds: how long to try to reach a remote file.

    Raises:
        UserError: it is missing, no regular file, longer, or cannot be read.
    """
    if is_remote(place):
        return fetch_bytes(place, seconds, most)
    try:
        # Opening a FIFO would wait for its writer.
        with os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{place} is no regular file. Correct data.path, or restore it.")
            data = file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"data.path: no file {place}. Correct the path, or restore it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.path: cannot read {excerpt(shown(place))} ({reason}). Correct the path, or its permissions."
        ) from error
    if len(data) > most:
        raise UserError(f"{place} is longer than {most} bytes: no {Path(place).name} of a data set.")
    return data
