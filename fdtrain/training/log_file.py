"""A file that grows by whole records, each once, whatever the disk does: ``metrics.jsonl`` and TensorBoard's events."""

from pathlib import Path


class LogFile:
    """What is written waits in memory until :meth:`flush` has brought it to the disk.

    Args:
        path: of the file, which need not exist.
        size: its bytes that stay.
    """

    def __init__(self, path: Path, size: int = 0):
        self.path, self.size, self.waiting = path, size, bytearray()

    def __len__(self) -> int:
        """Bytes, those that wait among them."""
        return self.size + len(self.waiting)

    def write(self, record: bytes) -> None:
        self.waiting += record

    def cut(self, length: int) -> None:
        """Forget what is beyond so many bytes: of the file at the next :meth:`flush`."""
        del self.waiting[max(0, length - self.size) :]
        self.size = min(self.size, length)

    def flush(self) -> None:
        """Raises OSError: what waits waits on."""
        with self.path.open("ab", buffering=0) as file:
            # What a write that failed has left, unless the file was replaced.
            self.size = min(self.size, file.seek(0, 2))
            file.truncate(self.size)
            rest = memoryview(bytes(self.waiting))
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(self.size)
                raise
        # A file server may say only when the file is closed that there was no room.
        self.size = len(self)
        self.waiting.clear()
