"""The order of samples: every sample once an epoch, whoever reads it, wherever one starts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrain.data.lanes import LaneOrder, own_lanes

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)
LANES = st.integers(1, 9)
WINDOWS = st.integers(1, 20)
SEEDS = st.integers(0, 2**63 - 1)


def everything(counts: list[int]) -> Counter:
    return Counter((shard, i) for shard, n in enumerate(counts) for i in range(n))


def read_until(order: LaneOrder, round_: int) -> Counter:
    """What all lanes have read by the end of a round."""
    stop = (round_ + 1) * order.images // order.lanes
    return Counter(tuple(row) for lane in range(order.lanes) for row in order.samples(lane, 0, stop).tolist())


@given(COUNTS, LANES, WINDOWS, SEEDS, st.integers(0, 4))
def test_every_sample_once_an_epoch_and_the_remainder_is_carried(counts, lanes, window, seed, round_):
    order = LaneOrder(counts, lanes, seed, window)
    read, once = read_until(order, round_), everything(counts)
    epochs, rest = divmod(read.total(), order.images)
    # Fewer samples than lanes are left of the last epoch; they open the next round.
    assert (round_ + 1) * order.images - read.total() < lanes
    assert set(read) <= set(once)
    for row in once:
        assert epochs <= read[row] <= epochs + (rest > 0)


@given(COUNTS, LANES, WINDOWS, SEEDS)
def test_epochs_do_not_mix_but_for_the_carried_remainder(counts, lanes, window, seed):
    """After as many rounds as lanes nothing is left over: exactly that many epochs."""
    read = read_until(LaneOrder(counts, lanes, seed, window), lanes - 1)
    assert read == Counter(dict.fromkeys(everything(counts), lanes))


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


@given(COUNTS, st.sampled_from([1, 2, 4, 6, 12]), WINDOWS, SEEDS, st.integers(1, 3), st.data())
def test_same_steps_for_any_world_workers_and_resume_point(counts, lanes, window, seed, lane_images, data):
    """A step's global batch, read by any number of ranks and workers, each with an order object of its own."""
    steps, resume = 6, data.draw(st.integers(0, 6))

    def read(world: int, workers: int, start: int, stop: int) -> dict[tuple[int, int], list]:
        orders = {}
        return {
            (k, lane): orders.setdefault((rank, k % workers), LaneOrder(counts, lanes, seed, window))
            .samples(lane, k * lane_images, (k + 1) * lane_images)
            .tolist()
            for rank in range(world)
            for k in range(start, stop)
            for lane in own_lanes(rank, world, lanes)
        }

    worlds = st.sampled_from([n for n in range(1, lanes + 1) if lanes % n == 0])
    before = read(data.draw(worlds), data.draw(st.integers(1, 3)), 0, resume)
    after = read(data.draw(worlds), data.draw(st.integers(1, 3)), resume, steps)
    assert before | after == read(1, 1, 0, steps)


@given(st.integers(1, 8), st.integers(1, 8))
def test_own_lanes_cut_the_lanes_in_order(world, share):
    lanes = world * share
    assert [lane for rank in range(world) for lane in own_lanes(rank, world, lanes)] == list(range(lanes))


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


@pytest.mark.parametrize(("counts", "lanes", "window"), [([0], 1, 1), ([3], 0, 1), ([3], 1, 0)])
def test_refuses_nothing_to_read(counts, lanes, window):
    with pytest.raises(ValueError, match="positive"):
        LaneOrder(counts, lanes, 0, window)
