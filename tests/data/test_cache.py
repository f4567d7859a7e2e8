"""The cache: one fetch for all, a cap that is kept, nothing evicted under a reader, whatever dies meanwhile."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from flaky import Flaky
from packed import pack, refused

from fdtrain.data import cache as module
from fdtrain.data.cache import Cache
from fdtrain.data.location import locate
from fdtrain.data.shards import OpenShard, ShardReader

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Five shards of equal length on a server: its record, and the shards."""
    folder = tmp_path_factory.mktemp("served") / "set"
    pack(folder, [4] * 5)
    flaky = Flaky(folder)
    with flaky.serve() as url:
        yield flaky, locate(url).split("train")


@pytest.fixture
def shards(served):
    served[0].requests.clear()
    served[0].faults.clear()
    served[0].whole.clear()
    return served[1]


def hold(cache: Cache, placed) -> tuple[Path, BinaryIO]:
    return cache.acquire(placed.shard, placed.place)


def use(cache: Cache, placed) -> None:
    hold(cache, placed)[1].close()


def cached(cache: Cache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


def names(shards, *numbers: int) -> set[str]:
    return {shards[i].shard.sha256 for i in numbers}


def test_least_recently_used_goes_first(shards, tmp_path):
    cache = Cache(tmp_path, 3 * shards[0].shard.bytes, 30)
    for i in (0, 1, 2):
        use(cache, shards[i])
    old = time.time() - 100
    for age, i in enumerate((1, 2, 0)):
        os.utime(cache.folder / f"{shards[i].shard.sha256}.tar", (old + age, old + age))
    use(cache, shards[1])
    use(cache, shards[3])
    assert cached(cache) == names(shards, 0, 1, 3)


def test_what_is_read_is_not_evicted(shards, tmp_path):
    cache = Cache(tmp_path, 2 * shards[0].shard.bytes, 30)
    first = OpenShard(shards[0], cache)
    use(cache, shards[1])
    use(cache, shards[2])
    use(cache, shards[3])
    assert cached(cache) == names(shards, 0, 3)
    first.close()
    use(cache, shards[1])
    use(cache, shards[2])
    assert cached(cache) == names(shards, 1, 2)


def test_what_is_fetched_ahead_stays_under_the_cap(shards, tmp_path):
    cache = Cache(tmp_path, sum(shards[i].shard.bytes for i in (0, 1)), 10)
    held = [hold(cache, shards[i]) for i in (0, 1)]
    cache.fetch_ahead(shards[2].shard, shards[2].place)
    assert cached(cache) == names(shards, 0, 1)
    assert not list(tmp_path.glob("*.part"))
    held[0][1].close()
    cache.fetch_ahead(shards[2].shard, shards[2].place)
    assert cached(cache) == names(shards, 1, 2)
    held[1][1].close()


def test_what_waits_to_be_read_goes_last(shards, tmp_path):
    """Nothing that was fetched ahead makes room for more of it; a reader takes the place of what is needed last."""
    cache = Cache(tmp_path, 3 * shards[0].shard.bytes, 10)
    use(cache, shards[0])
    for i in (1, 2, 3, 4):
        cache.fetch_ahead(shards[i].shard, shards[i].place)
    assert cached(cache) == names(shards, 1, 2, 3)
    use(cache, shards[0])
    assert cached(cache) == names(shards, 0, 1, 2)

    def aged(number: int, seconds: float) -> None:
        os.utime(tmp_path / f"{shards[number].shard.sha256}.tar", (time.time() - seconds,) * 2)

    aged(0, 10)
    use(cache, shards[1])
    use(cache, shards[4])
    assert cached(cache) == names(shards, 1, 2, 4)
    # Whoever fetched it may have ended.
    aged(2, module.AHEAD_SECONDS)
    cache.fetch_ahead(shards[3].shard, shards[3].place)
    assert cached(cache) == names(shards, 1, 3, 4)


def test_a_reader_in_another_process_counts_too(shards, tmp_path):
    held, done = FORK.Event(), FORK.Event()

    def work() -> None:
        with hold(Cache(tmp_path, None, 30), shards[0])[1]:
            held.set()
            done.wait(30)

    worker = FORK.Process(target=work)
    worker.start()
    assert held.wait(30)
    cache = Cache(tmp_path, shards[0].shard.bytes, 30)
    use(cache, shards[1])
    use(cache, shards[2])
    assert cached(cache) == names(shards, 0, 2)
    # Its locks end with it, however it ends.
    worker.kill()
    worker.join()
    use(cache, shards[3])
    assert cached(cache) == names(shards, 3)


def test_a_process_killed_while_fetching_blocks_nobody(served, shards, tmp_path):
    served[0].faults[shards[0].shard.file] = ["stall"]
    worker = FORK.Process(target=lambda: use(Cache(tmp_path, None, 30), shards[0]))
    worker.start()
    while not served[0].requests[shards[0].shard.file]:
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert list(tmp_path.glob("*.part"))
    use(Cache(tmp_path, None, 30), shards[0])
    assert not list(tmp_path.glob("*.part"))


def test_what_a_killed_process_left_is_evicted(shards, tmp_path):
    cache = Cache(tmp_path, 2 * shards[0].shard.bytes, 30)
    left = tmp_path / f"{'0' * 64}.{shards[0].shard.bytes}.part"
    left.touch()
    os.utime(left, (0, 0))
    use(cache, shards[0])
    use(cache, shards[1])
    assert cached(cache) == names(shards, 0, 1)
    assert not left.exists()


def test_a_file_of_the_wrong_length_is_fetched_again(served, shards, tmp_path):
    cache = Cache(tmp_path, None, 30)
    use(cache, shards[0])
    path = tmp_path / f"{shards[0].shard.sha256}.tar"
    path.write_bytes(path.read_bytes()[:100])
    use(cache, shards[0])
    assert path.stat().st_size == shards[0].shard.bytes
    assert served[0].whole[shards[0].shard.file] == 2


def test_nothing_final_is_asked_for_again(served, shards, tmp_path):
    for i, faults, asked in ((0, [404] * 3, 1), (1, ["wrong"] * 3, 2)):
        served[0].faults[shards[i].shard.file] = faults
        with refused():
            use(Cache(tmp_path, None, 30), shards[i])
        assert served[0].requests[shards[i].shard.file] == asked


def test_disk_full(shards, tmp_path):
    """A real one: writes to /dev/full fail as those to a full disk do."""
    cache = Cache(tmp_path, None, 30)
    shard = shards[0].shard
    (tmp_path / f"{shard.sha256}.{shard.bytes}.part").symlink_to("/dev/full")
    with refused(r"No space left on device. Free space there.*data.cache"):
        use(cache, shards[0])


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with refused(r"data\.cache: cannot write into"):
        Cache(tmp_path / "file", None, 1)


def test_a_cap_below_what_is_read_at_a_time_is_refused(served, shards, tmp_path):
    description = locate(shards[0].place.rpartition("/")[0]).description
    cache = Cache(tmp_path, 2 * shards[0].shard.bytes, 30)
    ShardReader(shards, description, cache, keep_open=2)
    with refused(r"data\.cache_gib: up to 3 shards"):
        ShardReader(shards, description, cache, keep_open=3)


def test_two_jobs_with_caps_of_their_own(served, shards, tmp_path):
    """Readers in two processes, each with room for two shards, over and over: never a wrong or missing file."""

    def work(seed: int) -> None:
        cache = Cache(tmp_path, 2 * shards[0].shard.bytes, 30)
        for i in range(20):
            opened = OpenShard(shards[(seed * i) % 5], cache)
            assert len(opened.samples.label) == 4
            opened.close()

    workers = [FORK.Process(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def test_prefetch_fetches_and_leaves_errors_to_the_reader(served, shards, tmp_path):
    served[0].faults[shards[1].shard.file] = [404]
    cache = Cache(tmp_path, None, 30)
    cache.request((placed.shard, placed.place) for placed in shards)
    end = time.monotonic() + 30
    while cached(cache) != names(shards, 0, 2, 3, 4) and time.monotonic() < end:
        time.sleep(0.01)
    assert cached(cache) == names(shards, 0, 2, 3, 4)
    use(cache, shards[1])
