"""Files that are complete or absent, and texts from elsewhere as their names."""

import hashlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""Of what becomes a part of a path: runs, splits, features."""
LONGEST_NAME = 100


def as_name(text: str) -> str:
    """A text from elsewhere as a part of a path: itself if it is a name; else what of it may be, and a checksum."""
    if re.fullmatch(NAME, text) and len(text) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', text)[:LONGEST_NAME].strip('-')}-{digest}".lstrip("-")


def write_atomically(
    path: Path, write_to: Callable[[Path], Any], durable: bool = True, make_folder: bool = True
) -> None:
    """Write a file under a temporary name in its folder, and rename it: readers see the old content or the new one.

    A write that fails leaves no file behind.

    Args:
        durable: flush the content and the rename to the disk before returning.
        make_folder: make the folder if there is none; without it that is an error.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write_to(temporary)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_text(path: Path, text: str, make_folder: bool = True) -> None:
    """:func:`write_atomically` of a text in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), make_folder=make_folder)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
