"""Files that grow by whole records, whatever the disk does."""

import os
from collections import deque
from pathlib import Path

MOST_WAITING = 64 << 20
"""Bytes of records that may wait in memory for the disk."""


class RecordFile:
    """Appends records to a file, each whole and once.

    What cannot be written waits in memory, up to a limit, for the next :meth:`write`; a file that a failed write has
    left with half a record is cut back first.

    Args:
        path: of the file, which need not exist.
        most: bytes that may wait; beyond it the oldest records are dropped and counted.
    """

    def __init__(self, path: Path, most: int = MOST_WAITING):
        self.path, self.most = path, most
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.bytes = self.dropped = 0
        self._sound: int | None = None

    def add(self, step: int, record: bytes) -> None:
        """Add a record of ``step`` to what the next :meth:`write` writes."""
        self.waiting.append((step, record))
        self.bytes += len(record)
        while self.bytes > self.most:
            self.bytes -= len(self.waiting.popleft()[1])
            self.dropped += 1

    def write(self) -> None:
        """Write what waits.

        Raises:
            OSError: it cannot be written now, and waits on.
        """
        if not self.waiting and self._sound is None:
            return
        data = memoryview(b"".join(record for _, record in self.waiting))
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(file).st_size
            if self._sound is not None and self._sound < size:
                os.ftruncate(file, self._sound)
                size = self._sound
            # Until all is on its way, no more than this is sound.
            self._sound = size
            try:
                while data:
                    data = data[os.write(file, data) :]
            except OSError:
                os.ftruncate(file, size)
                raise
        except OSError:
            os.close(file)
            raise
        # A file server may say only here that there was no room.
        os.close(file)
        self._sound = None
        self.waiting.clear()
        self.bytes = 0

    def forget_after(self, step: int, size: int | None = None) -> None:
        """Drop the records of later steps that wait, and, with the next :meth:`write`, all beyond ``size`` bytes."""
        self.waiting = deque(item for item in self.waiting if item[0] <= step)
        self.bytes = sum(len(record) for _, record in self.waiting)
        if size is not None:
            self._sound = size if self._sound is None else min(size, self._sound)
