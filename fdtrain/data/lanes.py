"""The order in which each lane reads samples, as a pure function (docs/data.md).

Epoch after epoch, the shards in a seeded permutation form one endless stream of samples. The stream is cut
into rounds of about one epoch, each a multiple of the number of lanes, and each round into one contiguous
run per lane; the rest of an epoch (fewer samples than lanes) opens the next round. A lane reads its
run in sequence through windows, each shuffled by its own seed. So the position of a lane at any step is
arithmetic, and resuming costs nothing.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from fdtrain.randomness import Purpose, stream


class LaneOrder:
    """The order of samples for every lane of a run, of shards of ``counts`` samples.

    The global batch is divided into ``lanes``. A ``window`` is what is shuffled together: a lane reads about as many
    samples ahead."""

    def __init__(self, counts: ArrayLike, lanes: int, seed: int, window: int = 1024):
        self.counts = np.ascontiguousarray(counts, dtype=np.int64)
        self.images = int(self.counts.sum())
        self.lanes, self.seed, self.window = lanes, seed, window
        # The window each lane is in, and the shard order of the epochs in use: caches only.
        self._windows: dict[int, tuple[tuple[int, int], np.ndarray]] = {}
        self._epoch = lru_cache(4)(self._drawn_epoch)

    def samples(self, lane: int, start: int, stop: int) -> np.ndarray:
        """Samples ``start <= p < stop`` of a lane's endless sequence, as rows ``(shard, index in shard)``."""
        parts = []
        while start < stop:
            round_, first, length = self._round(start)
            number, skip = divmod(start - first, self.window)
            part = self._window(lane, round_, number, first, length)[skip : skip + stop - start]
            parts.append(part)
            start += len(part)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.int64)

    @property
    def shards_at_once(self) -> int:
        """An estimate of the largest number of shards that one lane's window spans."""
        return min(len(self.counts), 2 + (self.window - 1) * len(self.counts) // self.images)

    def _round(self, position: int) -> tuple[int, int, int]:
        """The round that a lane's position falls in, the position it starts at, and its length in that lane.

        By the end of round ``e`` every lane has read ``floor((e + 1) images / lanes)`` samples.
        """
        round_ = -(-self.lanes * (position + 1) // self.images) - 1
        first = round_ * self.images // self.lanes
        return round_, first, (round_ + 1) * self.images // self.lanes - first

    def _window(self, lane: int, round_: int, number: int, first: int, length: int) -> np.ndarray:
        key = (round_, number)
        cached = self._windows.get(lane)
        if cached is None or cached[0] != key:
            begin = number * self.window
            order = stream(self.seed, Purpose.WINDOW, round_, lane, number).permutation(
                min(self.window, length - begin)
            )
            place = self.lanes * first + lane * length + begin + order
            cached = self._windows[lane] = (key, self._resolve(place))
        return cached[1]

    def _resolve(self, place: np.ndarray) -> np.ndarray:
        """Places in the endless stream to rows ``(shard, index in shard)``."""
        epoch, offset = np.divmod(place, self.images)
        rows = np.empty((len(place), 2), dtype=np.int64)
        for e in np.unique(epoch):
            order, ends = self._epoch(int(e))
            here = epoch == e
            slot = np.searchsorted(ends, offset[here], side="right")
            rows[here, 0] = order[slot]
            rows[here, 1] = offset[here] - ends[slot] + self.counts[order[slot]]
        return rows

    def _drawn_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards of an epoch in order, and the number of samples up to the end of each."""
        order = stream(self.seed, Purpose.SHARDS, epoch).permutation(len(self.counts))
        return order, np.cumsum(self.counts[order])


def own_lanes(rank: int, world_size: int, lanes: int) -> range:
    """The lanes of one rank, an equal and contiguous share."""
    share = lanes // world_size
    return range(rank * share, (rank + 1) * share)
