"""The folder of an export: complete or absent, with the checksums of its files."""

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fdtrain import files, lock
from fdtrain.checkpoint.store import manifest_entry
from fdtrain.errors import UserError
from fdtrain.evaluation.load import EXPORT_FILE, SPEC_FILE, WEIGHTS_FILE

VERSION = 1
"""Of the record."""


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of ``destination`` when all is written, in place of an earlier export.

    Raises:
        UserError: it cannot be written, another export to it is under way, or something else is there.
    """
    temporary = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}"
    _check_free(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with lock.held(destination, lock=destination.with_name(f".{destination.name}.lock")):
            _remove_left_behind(destination)
            temporary.mkdir()
            yield temporary
            replaced = temporary.with_name(f"{temporary.name}.replaced")
            if destination.exists():
                destination.rename(replaced)
            temporary.rename(destination)
            files.sync(destination.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write into {destination} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_behind(destination: Path) -> None:
    """What exports to this place that were killed have left; the lock is held."""
    left = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}(\.replaced)?")
    for path in destination.parent.iterdir():
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _check_free(destination: Path) -> None:
    try:
        there = {path.name for path in destination.iterdir()} if destination.exists() else set()
    except OSError as error:
        raise UserError(f"cannot write into {destination} ({error.strerror}).") from error
    if there and EXPORT_FILE not in there and not {SPEC_FILE, WEIGHTS_FILE} <= there:
        raise UserError(f"{destination} holds something else than an export. Choose another folder.")


def write_record(folder: Path, record: dict) -> None:
    """Write what the export is, with size and checksum of every file that is there by now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): manifest_entry(path) for path in paths}
    for path in paths:
        files.sync(path)
    files.write_text(folder / EXPORT_FILE, json.dumps({**record, "files": entries}, indent=1) + "\n")
