"""Mixtures: weights kept, every sample of a data set once in its own epoch, resume by arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import number, pack

from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.mixture import BLOCK, MixtureOrder, lane_order, open_data, quotas
from fdtrain.data.shards import ShardReader
from fdtrain.errors import UserError

COUNTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), min_size=2, max_size=3)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=5))
def test_quotas_are_the_weights(weights):
    n = quotas(weights)
    assert n.sum() == BLOCK
    np.testing.assert_allclose(n / BLOCK, np.array(weights) / sum(weights), atol=1 / BLOCK)


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 4), st.integers(1, 20), st.integers(0, 2**63 - 1), st.data())
def test_starting_anywhere_gives_what_would_have_come(counts, lanes, window, seed, data):
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(counts), max_size=len(counts)))
    lane = data.draw(st.integers(0, lanes - 1))
    begin = data.draw(st.integers(0, 3 * BLOCK))
    start = begin + data.draw(st.integers(0, 50))
    stop = start + data.draw(st.integers(0, 50))
    whole = MixtureOrder(counts, weights, lanes, seed, window).samples(lane, begin, stop)
    fresh = MixtureOrder(counts, weights, lanes, seed, window)
    np.testing.assert_array_equal(fresh.samples(lane, start, stop), whole[start - begin :])


@settings(deadline=None, max_examples=8)
@given(COUNTS, st.integers(1, 3), st.integers(10, 200), st.integers(0, 2**63 - 1))
def test_each_data_set_is_read_in_an_order_of_its_own(counts, lanes, window, seed):
    order = MixtureOrder(counts, [d + 1.0 for d in range(len(counts))], lanes, seed, window)
    rows = [order.samples(lane, 0, BLOCK + 100) for lane in range(lanes)]
    first = 0
    for d, sizes in enumerate(counts):
        own = [r[(r[:, 0] >= first) & (r[:, 0] < first + len(sizes))] - [first, 0] for r in rows]
        for lane, read in enumerate(own):
            np.testing.assert_array_equal(read, order.orders[d].samples(lane, 0, len(read)))
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
    pack(tmp_path / "a", (5,))
    pack(tmp_path / "b", (5,))
    data = open_data([tmp_path / "a", tmp_path / "b"])
    assert len(data.description.classes) == 10
    assert [part[0].labels for part in data.split("train").parts] == [range(10), range(10)]


@pytest.mark.parametrize("change", [{"size": 5}, {"channels": 1}, {"levels": 200}])
def test_images_must_be_alike(tmp_path, change):
    pack(tmp_path / "a", (5,))
    pack(tmp_path / "b", (5,), **change)
    with pytest.raises(UserError, match=f"data.mixture: {next(iter(change))} is"):
        open_data([tmp_path / "a", tmp_path / "b"])
