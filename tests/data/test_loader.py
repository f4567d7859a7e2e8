"""Batches: the lanes' order in pixels, whoever reads; broken samples skipped, counted, and borne to a limit."""

import mmap
import os
import signal
import time
from itertools import chain

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import describe, number, pack, refused, sample, write_tar

from fdtrain.data import loader
from fdtrain.data.lanes import LaneOrder, own_lanes
from fdtrain.data.loader import MAX_REPORTED, Batches, LaneDataset
from fdtrain.data.location import locate
from fdtrain.data.shards import ShardReader

LANES, LANE_IMAGES = 4, 3
COUNTS = (11, 3, 9, 1, 6)


def dataset(folder, lanes=range(LANES), window=6, seed=3, **options) -> LaneDataset:
    data = locate(folder)
    shards = data.split("train")
    order = LaneOrder([placed.shard.images for placed in shards], LANES, seed, window)
    return LaneDataset(ShardReader(shards, data.description), order, lanes, LANE_IMAGES, **options)


def numbers(batches) -> list[list[int]]:
    return [[number(x) for x in images.numpy()] for images, _ in batches]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "set"
    pack(path, COUNTS)
    return path


def test_a_batch_is_the_lanes_samples_lane_after_lane(folder):
    read = dataset(folder)
    first = [0, 11, 14, 23, 24]
    for step, (images, labels) in enumerate(Batches(read, 0, 9, workers=0)):
        rows = [row for lane in range(LANES) for row in read.order.samples(lane, 3 * step, 3 * step + 3).tolist()]
        expected = [first[shard] + index for shard, index in rows]
        assert [number(x) for x in images.numpy()] == expected
        assert labels.tolist() == [n % 10 for n in expected]
        assert images.dtype == torch.uint8
        assert images.shape == (LANES * LANE_IMAGES, 3, 4, 4)
        assert images.is_contiguous()


def test_workers_and_resume_change_nothing(folder):
    whole = numbers(Batches(dataset(folder), 0, 12, workers=0))
    assert numbers(Batches(dataset(folder), 0, 12, workers=2)) == whole
    assert numbers(Batches(dataset(folder), 7, 12, workers=2)) == whole[7:]


def test_a_reading_process_that_never_begins_is_replaced(folder, monkeypatch):
    """Stuck as one is that was forked while a lock was held: before its first line, with all signals blocked."""
    forks, begin = np.frombuffer(mmap.mmap(-1, 1), np.uint8), loader.ignore_all_but_parent

    def stuck_at_first(worker):
        forks[0] += 1
        if forks[0] == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        begin(worker)

    # For so long torch waits for one of its processes to end.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(loader, "START_SECONDS", 2.0)
    monkeypatch.setattr(loader, "ignore_all_but_parent", stuck_at_first)
    before = {child.pid for child in psutil.Process().children()}
    batches = Batches(dataset(folder), 0, 12, workers=1)
    assert numbers(batches) == numbers(Batches(dataset(folder), 0, 12, workers=0))
    assert forks[0] == 2
    assert len({child.pid for child in psutil.Process().children()} - before) <= 1
    monkeypatch.setattr(loader, "START_SECONDS", 0.2)
    monkeypatch.setattr(loader, "STARTS", 1)
    monkeypatch.setattr(loader, "ignore_all_but_parent", lambda worker: time.sleep(60))
    with refused(r"did not begin in 1 attempts. Set data.workers to 0"):
        Batches(dataset(folder), 0, 12, workers=1)


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_batch_stays_what_it_was_while_workers_read_on(folder, pause):
    """Slots of memory are used again, whether the workers or their reader are the slower."""
    whole = list(Batches(dataset(folder), 0, 60, workers=0))
    read = []
    for batch in Batches(dataset(folder), 0, 60, workers=2):
        read.append(batch)
        time.sleep(pause)
    for (images, labels), (expected, known) in zip(read, whole, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, known)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The same data set with three samples broken."""
    path = tmp_path_factory.mktemp("loader") / "damaged"
    pack(path, COUNTS, broken={4, 17, 18})
    return path


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 12), st.integers(6, 40), st.integers(0, 100))
def test_world_size_and_resume_change_nothing(damaged, world, start, window, seed):
    """Nor which samples stand in for broken ones."""

    def read(start: int, lanes=range(LANES)) -> list[list[int]]:
        return numbers(Batches(dataset(damaged, lanes, window, seed), start, 12, workers=0, max_broken_share=0.5))

    ranks = [read(start, own_lanes(rank, world, LANES)) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == read(0)[start:]


def test_flips_by_seed_step_and_lane(folder):
    plain = [x for x, _ in Batches(dataset(folder), 0, 6, workers=0)]
    flipped = [x for x, _ in Batches(dataset(folder, flip=True), 0, 6, workers=0)]
    halves = [
        x for rank in range(2) for x, _ in Batches(dataset(folder, own_lanes(rank, 2, LANES), flip=True), 5, 6, 0)
    ]
    both = torch.cat(plain), torch.cat(flipped)
    turned = [not torch.equal(a, b) for a, b in zip(*both, strict=True)]
    assert 0.2 < np.mean(turned) < 0.8
    assert all(torch.equal(a.flip(-1) if t else a, b) for t, a, b in zip(turned, *both, strict=True))
    assert torch.equal(torch.cat(halves), flipped[5])


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_replaced_counted_and_reported(folder, tmp_path, caplog, workers):
    bad = {4, 17}
    pack(tmp_path / "set", COUNTS, broken=bad)
    sound = numbers(Batches(dataset(folder), 0, 10, workers=0))
    batches = Batches(dataset(tmp_path / "set"), 0, 10, workers, max_broken_share=0.1)
    read, broken_now = [], []
    for images, labels in batches:
        read.append([number(x) for x in images.numpy()])
        broken_now.append(batches.broken_now)
        assert labels.tolist() == [n % 10 for n in read[-1]]
    for wanted, found in zip(sound, read, strict=True):
        for w, f in zip(wanted, found, strict=True):
            assert f == w if w not in bad else f not in bad
    expected = [sum(n in bad for n in step) for step in sound]
    assert broken_now == expected
    assert batches.broken == sum(expected) > 2
    told = caplog.messages
    assert len(told) == min(MAX_REPORTED, batches.broken)
    assert all("skipping a broken sample" in line and ("'000004'" in line or "'000017'" in line) for line in told)


@pytest.mark.parametrize(
    ("bad", "share", "workers", "complaint"),
    [
        ({4}, 0.0, 1, r"train-000000.tar, sample '000004': not an npy array.*max_broken_share"),
        (range(0, 30, 5), 0.1, 0, r"\(\d of \d+ images read are broken\).*max_broken_share \(0\.1\)"),
        (range(30), 0.9, 0, "nor is any of the 6 after it sound"),
    ],
)
def test_what_is_not_borne(tmp_path, bad, share, workers, complaint):
    """Any broken sample unless a share is configured, more than that, and a window without a sound one."""
    pack(tmp_path / "set", COUNTS, broken=bad)
    with refused(complaint):
        list(Batches(dataset(tmp_path / "set"), 0, 10, workers, max_broken_share=share))


def test_an_unlabelled_sample_where_labels_are_needed(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    write_tar(path / "train-000000.tar", [m for i in range(9) for m in sample(i) if not m[0].endswith("cls")])
    describe(path, {"train": {"train-000000.tar": 9}})
    assert next(Batches(dataset(path), 0, 1, workers=0))[1].eq(-1).all()
    with refused("without a label"):
        next(Batches(dataset(path, labelled=True), 0, 1, workers=0))
