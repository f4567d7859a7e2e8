"""Remote shards are fetched before they are read, since the order of the lanes is known in advance."""

import queue
import threading
from collections.abc import Iterable

from fdtrain.data.cache import Cache
from fdtrain.data.fetch import is_remote
from fdtrain.data.shards import PlacedShard
from fdtrain.errors import UserError

THREADS = 4
"""The shards that one process fetches at a time."""


class Prefetcher:
    """Fetches shards by daemon threads, started by the first request. Nothing waits for them when the process ends."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self._queue: queue.SimpleQueue[PlacedShard] = queue.SimpleQueue()
        self._started = False

    def request(self, shards: Iterable[PlacedShard]) -> None:
        """Fetch these shards, in this order, in the background."""
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
                # The reader of the shard tries again, and reports the error.
                continue
