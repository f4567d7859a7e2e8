"""Remote shards fetched before they are read: the order of the lanes is known, so what comes next is too."""

import queue
import threading
from collections.abc import Iterable

from fdtrain.data.cache import Cache
from fdtrain.data.fetch import is_remote
from fdtrain.data.shards import PlacedShard
from fdtrain.errors import UserError

THREADS = 4
"""Shards of one process under way at a time."""


class Prefetcher:
    """Daemon threads of the process that first wants something: nothing waits for them at its end."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self._queue: queue.SimpleQueue[PlacedShard] = queue.SimpleQueue()
        self._started = False

    def want(self, shards: Iterable[PlacedShard]) -> None:
        """Fetch these, in this order, in the background."""
        if not self._started:
            self._started = True
            for _ in range(THREADS):
                threading.Thread(target=self._work, daemon=True).start()
        for placed in shards:
            if is_remote(placed.place):
                self._queue.put(placed)

    def _work(self) -> None:
        while True:
            placed = self._queue.get()
            try:
                self.cache.fetch_ahead(placed.shard, placed.place)
            except UserError:
                # Whoever reads the shard will try again, and tell.
                continue
