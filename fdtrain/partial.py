"""Work that can be interrupted and shared: a request, and its finished parts on the disk.

A part is a file that is complete or absent, and that its store can check. One process prepares the folder and decides
what is missing; every process of a launch commits its own parts.
"""

import json
import logging
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from fdtrain import files, lock
from fdtrain.errors import UserError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class PartialStore(ABC, Generic[T]):
    """The finished parts in ``folder`` of the work that ``request`` asks for, JSON that defines all of them.

    Parts of another request are never mixed with these. What the system refuses to write is a UserError.
    """

    PART: re.Pattern[str]
    """The name of a part's file."""
    DURABLE = True
    """Whether to flush each file to the disk: otherwise a crash of the machine may damage or lose it."""

    def __init__(self, folder: Path, request: dict[str, Any], request_file: Path):
        self.folder, self.request, self.request_file = folder, request, request_file

    @abstractmethod
    def read(self, name: str) -> T | None:
        """The content of a part; None if it is damaged."""

    def stored_request(self) -> dict[str, Any]:
        """The request in the folder and what is stored with it; OSError or ValueError if it cannot be read."""
        return json.loads(self.request_file.read_text("utf-8", "surrogatepass"))

    def store_request(self, **results: Any) -> None:
        """Write the request, and results that do not count when requests are compared."""
        text = json.dumps(self.request | results, indent=1, ensure_ascii=False) + "\n"
        self.commit(self.request_file, text.encode("utf-8", "surrogatepass"))

    def differences(self) -> list[str]:
        """How the request in the folder, if there is one, differs from this one."""
        try:
            return differences(self.stored_request(), self.request)
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            return [f"a broken {self.request_file.name}"]

    def prepare(self) -> None:
        """Make the folder, and remove temporary files, parts of another request and, with a warning, damaged parts."""
        with self.writing(self.request_file.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            same = self.request_file.exists() and not self.differences()
            for path in self.folder.iterdir():
                if path not in (self.request_file, self.folder / lock.FILE) and not self.PART.fullmatch(path.name):
                    path.unlink()
            for name in self.names():
                damaged = same and self.read(name) is None
                if damaged:
                    logger.warning("%s is damaged; it is removed and computed again", self.folder / name)
                if damaged or not same:
                    self.remove_part(name)
            if not same:
                self.store_request()

    def names(self) -> list[str]:
        """The files of the parts, in the order of their numbers."""
        names = [path.name for path in self.folder.glob("*") if self.PART.fullmatch(path.name)]
        return sorted(names, key=lambda name: (len(name), name))

    def load(self) -> Iterator[T]:
        """The parts in order. UserError if one was damaged since :meth:`prepare`; it is removed."""
        for name in self.names():
            content = self.read(name)
            if content is None:
                self.remove_part(name)
                path = self.folder / name
                raise UserError(f"{path} was damaged and is removed. Repeat the command to compute it again.")
            yield content

    def commit(self, path: Path, data: bytes) -> None:
        """Write the file of a part."""
        with self.writing(path):
            files.write_atomically(path, lambda temporary: temporary.write_bytes(data), self.DURABLE)

    def remove_part(self, name: str) -> None:
        """Remove the file of a part, and what belongs to it."""
        (self.folder / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, once the result is written."""
        shutil.rmtree(self.folder)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """What the system refuses in this context is a UserError."""
        try:
            yield
        except OSError as error:
            what = f"{path} cannot be written ({error.strerror or error})"
            raise UserError(f"{what}. Make room, or its folder writable; then the same command goes on.") from error


def differences(stored: Any, request: dict[str, Any]) -> list[str]:
    """The entries of a request that differ from those stored, for a message."""
    if not isinstance(stored, dict):
        return ["no request"]
    return [f"{key} {stored.get(key)}, not {value}" for key, value in request.items() if stored.get(key) != value]
