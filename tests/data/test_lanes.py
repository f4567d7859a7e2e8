"""The order of samples: every sample once an epoch, whoever reads it, wherever one starts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrain.data.lanes import LaneOrder

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)
LANES = st.integers(1, 9)
WINDOWS = st.integers(1, 20)
SEEDS = st.integers(0, 2**63 - 1)


@given(COUNTS, LANES, WINDOWS, SEEDS, st.integers(0, 4))
def test_every_sample_once_an_epoch_and_the_remainder_is_carried(counts, lanes, window, seed, round_):
    order = LaneOrder(counts, lanes, seed, window)
    stop = (round_ + 1) * order.images // lanes
    read = Counter(tuple(row) for lane in range(lanes) for row in order.samples(lane, 0, stop).tolist())
    epochs, rest = divmod(read.total(), order.images)
    # Fewer samples than lanes are left of the last epoch; they open the next round.
    assert (round_ + 1) * order.images - read.total() < lanes
    once = {(shard, i) for shard, n in enumerate(counts) for i in range(n)}
    assert set(read) <= once
    assert all(epochs <= read[row] <= epochs + (rest > 0) for row in once)


@given(COUNTS, LANES, WINDOWS, SEEDS, st.data())
def test_starting_anywhere_gives_what_would_have_come(counts, lanes, window, seed, data):
    through = LaneOrder(counts, lanes, seed, window)
    length = 3 * through.images // lanes + 5
    lane = data.draw(st.integers(0, lanes - 1))
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    whole = through.samples(lane, 0, length)
    fresh = LaneOrder(counts, lanes, seed, window)
    np.testing.assert_array_equal(fresh.samples(lane, start, stop), whole[start:stop])


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffles_shards_and_samples(seed):
    order = LaneOrder([100] * 10, lanes=2, seed=seed, window=50)
    first, second = order.samples(0, 0, 500), order.samples(0, 500, 1000)
    assert first[:, 0].tolist() != sorted(first[:, 0].tolist())
    assert (np.diff(first[:, 1]) != 1).mean() > 0.9
    assert first.tolist() != second.tolist()
    assert first.tolist() != LaneOrder([100] * 10, 2, seed + 10, 50).samples(0, 0, 500).tolist()


def test_order_is_part_of_every_run_so_it_never_changes():
    order = LaneOrder([3, 4, 5], lanes=2, seed=7, window=3)
    assert order.samples(1, 0, 8).tolist() == [[2, 2], [2, 4], [2, 3], [0, 1], [0, 2], [0, 0], [1, 0], [2, 3]]
