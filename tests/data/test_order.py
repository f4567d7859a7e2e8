"""The order of samples, of one data set and of mixtures: every sample once an epoch, weights kept, the same whoever
reads and wherever one starts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import number, pack, refused

from fdtrain.data import mixture
from fdtrain.data.lanes import LaneOrder
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.mixture import MixtureOrder, lane_order, open_data, quotas
from fdtrain.data.shards import ShardReader

BLOCK = 64
COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)
SETS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), min_size=1, max_size=3)
LANES, WINDOWS, SEEDS = st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**63 - 1)


@pytest.fixture(autouse=True, scope="module")
def _short_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK", BLOCK)
        yield


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


@settings(deadline=None, max_examples=50)
@given(SETS, LANES, WINDOWS, SEEDS, st.data())
def test_starting_anywhere_gives_what_would_have_come(counts, lanes, window, seed, data):
    """Of one data set or a mixture."""
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(counts), max_size=len(counts)))
    lane = data.draw(st.integers(0, lanes - 1))
    start = data.draw(st.integers(0, 2 * BLOCK))
    stop = data.draw(st.integers(start, 2 * BLOCK + 50))
    whole = lane_order(counts, weights, lanes, seed, window).samples(lane, 0, 2 * BLOCK + 50)
    fresh = lane_order(counts, weights, lanes, seed, window)
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


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=5))
def test_quotas_are_the_weights(weights):
    n = quotas(weights)
    assert n.sum() == BLOCK
    np.testing.assert_allclose(n / BLOCK, np.array(weights) / sum(weights), atol=1 / BLOCK)


@settings(deadline=None, max_examples=10)
@given(SETS, LANES, WINDOWS, SEEDS)
def test_each_data_set_is_read_in_an_order_of_its_own(counts, lanes, window, seed):
    order = MixtureOrder(counts, [d + 1.0 for d in range(len(counts))], lanes, seed, window)
    first = 0
    for own, sizes in zip(order.orders, counts, strict=True):
        for lane in range(lanes):
            rows = order.samples(lane, 0, BLOCK + 100)
            read = rows[(rows[:, 0] >= first) & (rows[:, 0] < first + len(sizes))] - [first, 0]
            np.testing.assert_array_equal(read, own.samples(lane, 0, len(read)))
        first += len(sizes)


def test_weights_hold_over_every_block():
    order = MixtureOrder([[50], [1000]], [3, 1], lanes=2, seed=0)
    for block in range(3):
        rows = order.samples(1, block * BLOCK, (block + 1) * BLOCK)
        assert (rows[:, 0] == 0).sum() == 3 * BLOCK // 4
    assert (np.diff(order.samples(0, 0, 100)[:, 0]) != 0).sum() > 20


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_mixture(tmp_path, workers):
    pack(tmp_path / "a", (5, 4))
    pack(tmp_path / "b", (7,), first=100, classes=["x", "y", *"01234567"])
    data = open_data([tmp_path / "a", tmp_path / "b"])
    assert data.description.name == "a+b"
    assert data.description.classes[9:12] == ["a/9", "b/x", "b/y"]
    shards = data.split("train")
    order = lane_order([part.images for part in shards.parts], [1, 3], 4, 0, 8)
    read = LaneDataset(ShardReader(shards, data.description), order, range(4), 2)
    count = 0
    for images, labels in Batches(read, 0, 40, workers):
        for n, label in zip(map(number, images.numpy()), labels.tolist(), strict=True):
            assert label == (n % 10 if n < 100 else 10 + n % 10)
            count += n < 100
    assert 0.2 < count / 320 < 0.3


def test_the_same_classes_are_shared(tmp_path):
    for name in ("a", "b"):
        pack(tmp_path / name, (5,))
    data = open_data([tmp_path / "a", tmp_path / "b"])
    assert len(data.description.classes) == 10
    assert [part[0].labels for part in data.split("train").parts] == [range(10), range(10)]


@pytest.mark.parametrize("change", [{"size": 5}, {"channels": 1}, {"levels": 200}])
def test_images_must_be_alike(tmp_path, change):
    pack(tmp_path / "a", (5,))
    pack(tmp_path / "b", (5,), **change)
    with refused(f"data.mixture: {next(iter(change))} is"):
        open_data([tmp_path / "a", tmp_path / "b"])
