"""Several data sets in one run, by weight (docs/data.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from fdtrain.data.adopt import is_shards, scanned
from fdtrain.data.dataset import DatasetDescription
from fdtrain.data.lanes import LaneOrder
from fdtrain.data.location import PackedData, locate
from fdtrain.data.shard_table import concatenated
from fdtrain.data.shards import ChainedShards
from fdtrain.errors import UserError
from fdtrain.randomness import Purpose, stream, torch_seed

BLOCK = 4096
"""Samples of a lane over which the weights are exact, once they are rounded to 1 / BLOCK."""


@dataclass(frozen=True)
class DataSets:
    """The data of a run: one data set, or several.

    Attributes:
        description: describes all together. Data sets with the same classes share them; otherwise the labels of each
            follow those of the one before, and its classes are called ``dataset/class``.
    """

    parts: list[PackedData]
    description: DatasetDescription

    def split(self, name: str) -> ChainedShards:
        """The shards of a split, with labels as in the common description. Raises UserError: a data set has no such
        split."""
        placed, first = [], 0
        for part in self.parts:
            placed.append(part.split(name, first))
            if part.description.classes != self.description.classes:
                first += len(part.description.classes)
        return ChainedShards(placed)


def open_data(paths: Sequence[str | Path], allow_pipe: bool = False, seconds: float = 60.0) -> DataSets:
    """Find data sets, as :func:`locate` does, and join their descriptions.

    A path may name shards that nothing describes: :func:`fdtrain.data.adopt.scanned`. Raises UserError: one cannot be
    found, or their images are not alike."""
    parts = [scanned(str(path)) if is_shards(str(path)) else locate(path, allow_pipe, seconds) for path in paths]
    descriptions = [part.description for part in parts]
    first = descriptions[0]
    if len(parts) == 1:
        return DataSets(parts, first)
    for other in descriptions[1:]:
        for name in ("size", "channels", "levels"):
            if getattr(other, name) != getattr(first, name):
                raise UserError(
                    f"data.mixture: {name} is {getattr(first, name)} in '{first.name}', {getattr(other, name)} in "
                    f"'{other.name}'. Mix data sets of the same image size, channels and levels."
                )
    classes = first.classes
    if any(d.classes != classes for d in descriptions):
        classes = [f"{d.name}/{name}" for d in descriptions for name in d.classes]
    splits = set.intersection(*(set(d.splits) for d in descriptions))
    merged = first.model_copy(
        update={
            "name": "+".join(d.name for d in descriptions),
            "source": "; ".join(d.source for d in descriptions),
            "classes": classes,
            "encoding": "+".join(dict.fromkeys(d.encoding for d in descriptions)),
            "splits": {s: concatenated([d.splits[s] for d in descriptions]) for s in sorted(splits)},
        }
    )
    return DataSets(parts, merged)


def lane_order(
    counts: Sequence[ArrayLike], weights: Sequence[float], lanes: int, seed: int, window: int
) -> "LaneOrder | MixtureOrder":
    """The order of a run over data sets whose shards hold ``counts`` samples."""
    if len(counts) == 1:
        return LaneOrder(counts[0], lanes, seed, window)
    return MixtureOrder(counts, weights, lanes, seed, window)


class MixtureOrder:
    """The order of samples over several data sets, like :class:`LaneOrder`. Shards are numbered one set after another.

    Positions of a lane come in blocks of ``BLOCK``. In each block, data set ``d`` has a fixed number ``n_d`` of places,
    in a shuffled sequence with a seed of its own. So the position of a lane in each data set is arithmetic, and each
    data set is read in its own :class:`LaneOrder`, every sample once in an epoch of that data set."""

    def __init__(
        self, counts: Sequence[ArrayLike], weights: Sequence[float], lanes: int, seed: int, window: int = 1024
    ):
        self.lanes, self.seed = lanes, seed
        self.quotas = quotas(weights)
        self.orders = [
            LaneOrder(c, lanes, torch_seed(seed, Purpose.MIXTURE, 0, d), window) for d, c in enumerate(counts)
        ]
        self.images = sum(order.images for order in self.orders)
        self._first_shard = np.cumsum([0, *(np.size(c) for c in counts)])
        # By lane, the block it is in and the block's data sets: a cache only.
        self._blocks: dict[int, tuple[int, np.ndarray]] = {}

    def samples(self, lane: int, start: int, stop: int) -> np.ndarray:
        """Samples ``start <= p < stop`` of a lane's endless sequence, as rows ``(shard, index in shard)``."""
        parts = [np.empty((0, 2), dtype=np.int64)]
        while start < stop:
            block, begin = divmod(start, BLOCK)
            sets = self._block(lane, block)
            part = sets[begin : begin + stop - start]
            rows = np.empty((len(part), 2), dtype=np.int64)
            # Positions in each data set's own sequence.
            first = self.quotas * block + np.bincount(sets[:begin], minlength=len(self.quotas))
            last = first + np.bincount(part, minlength=len(self.quotas))
            for d, order in enumerate(self.orders):
                rows[part == d] = order.samples(lane, int(first[d]), int(last[d])) + np.array([self._first_shard[d], 0])
            parts.append(rows)
            start += len(part)
        return np.concatenate(parts)

    @property
    def shards_at_once(self) -> int:
        return sum(order.shards_at_once for order in self.orders)

    @property
    def window(self) -> int:
        return self.orders[0].window

    def _block(self, lane: int, block: int) -> np.ndarray:
        """The data set of each place in a block."""
        cached = self._blocks.get(lane)
        if cached is None or cached[0] != block:
            sets = np.repeat(np.arange(len(self.quotas)), self.quotas)
            shuffled = stream(self.seed, Purpose.MIXTURE, 1, lane, block).permutation(sets)
            cached = self._blocks[lane] = (block, shuffled)
        return cached[1]


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Places of each data set in a block, by largest remainders; they add up to ``BLOCK``."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")[: BLOCK - int(whole.sum())]
    whole[largest] += 1
    return whole
