"""``metrics.jsonl``: a line for each interval that is logged, whole and once, whatever the disk does."""

import json
from pathlib import Path


class LogFile:
    """Appends lines to a file; those that cannot be written wait in memory for the next :meth:`write`.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[tuple[int, bytes]] = []
        self.size = 0
        """Bytes of the file that are whole lines of this run."""
        self._last: int | None = None

    def cut(self, step: int) -> None:
        """Forget what is of steps after ``step``: of the file, and what a crash has left by half, at the next write."""
        self._last = step
        self.waiting = [line for line in self.waiting if line[0] <= step]

    def add(self, step: int, values: dict[str, float]) -> None:
        self.waiting.append((step, json.dumps({"step": step, **values}).encode() + b"\n"))

    def write(self) -> None:
        """Append what waits. Raises OSError: it waits on."""
        with self.path.open("a+b", buffering=0) as file:
            if self._last is not None:
                file.seek(0)
                self.size = _size_up_to(self._last, file.read())
                self._last = None
            # What a write that failed has left, unless the file was replaced.
            self.size = min(self.size, file.seek(0, 2))
            file.truncate(self.size)
            data = b"".join(line for _, line in self.waiting)
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(self.size)
                raise
        # A file server may say only when the file is closed that there was no room.
        self.size += len(data)
        self.waiting.clear()


def _size_up_to(step: int, content: bytes) -> int:
    """Bytes of a log up to its last whole line of a step up to ``step``."""
    size = end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        size = end if line.endswith(b"\n") and step_of(line) <= step else size
    return size


def step_of(line: bytes) -> float:
    """Infinite of a line that is not whole."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
