"""What the processes of a host share: fetched once for all, under a cap that is kept, nothing evicted under a reader,
whatever dies meanwhile."""

import fcntl
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from flaky import Flaky
from packed import pack, refused

from fdtrain.data import cache as module
from fdtrain.data import host, shard_table
from fdtrain.data.cache import Cache
from fdtrain.data.dataset import FILE
from fdtrain.data.host import made_once, temporary_folder
from fdtrain.data.location import locate
from fdtrain.data.shards import OpenShard, ShardReader
from fdtrain.errors import UserError

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


def use(cache: Cache, *placed) -> None:
    for each in placed:
        hold(cache, each)[1].close()


def aged(cache: Cache, placed, seconds: float) -> None:
    """Last read so long ago."""
    os.utime(cache.folder / f"{placed.shard.sha256}.tar", (time.time() - seconds,) * 2)


def cached(cache: Cache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


def names(shards, *numbers: int) -> set[str]:
    return {shards[i].shard.sha256 for i in numbers}


def test_least_recently_used_goes_first(shards, tmp_path):
    cache = Cache(tmp_path, 3 * shards[0].shard.bytes, 30)
    use(cache, shards[0], shards[1], shards[2])
    for i, seconds in ((1, 30), (2, 20), (0, 10)):
        aged(cache, shards[i], seconds)
    use(cache, shards[1], shards[3])
    assert cached(cache) == names(shards, 0, 1, 3)


def test_what_is_read_is_not_evicted(shards, tmp_path):
    cache = Cache(tmp_path, 2 * shards[0].shard.bytes, 30)
    first = OpenShard(shards[0], cache)
    use(cache, shards[1], shards[2], shards[3])
    assert cached(cache) == names(shards, 0, 3)
    first.close()
    use(cache, shards[1], shards[2])
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
    aged(cache, shards[0], 10)
    use(cache, shards[1], shards[4])
    assert cached(cache) == names(shards, 1, 2, 4)
    # Whoever fetched it may have ended.
    aged(cache, shards[2], module.AHEAD_SECONDS)
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
    use(cache, shards[1], shards[2])
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
    use(cache, shards[0], shards[1])
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


def on_a_host(find, processes=3) -> list[str]:
    """What each process of a launch finds, or its error."""
    answers = FORK.SimpleQueue()

    def rank():
        os.environ["LOCAL_SIZE"] = str(processes)
        try:
            answers.put(str(find()))
        except UserError as error:
            answers.put(f"error: {error}")

    ranks = [FORK.Process(target=rank) for _ in range(processes)]
    for process in ranks:
        process.start()
    found = [answers.get() for _ in ranks]
    for process in ranks:
        process.join()
    return found


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A data set whose shards are described in three files of rows."""
    monkeypatch.setattr(shard_table, "INLINE", 3)
    monkeypatch.setattr(shard_table, "PART", 4)
    pack(tmp_path / "set", [1] * 9)
    return tmp_path / "set"


def test_a_description_is_read_once(parts):
    flaky = Flaky(parts)
    with flaky.serve() as url:
        found = on_a_host(lambda: list(locate(url).split("train").shards.identities()))
    assert found == [str(list(locate(parts).split("train").shards.identities()))] * 3
    assert dict(flaky.requests) == {
        FILE: 1,
        **{Path(part["file"]).name: 1 for part in json.loads((parts / FILE).read_text())["splits"]["train"]["parts"]},
    }


def test_an_error_is_told_to_all(parts):
    def full(path):
        raise OSError(28, "No space left on device")

    (parts / "index" / "train-000001.shards").unlink()
    for find, told in ((lambda: locate(parts), "train-000001.shards"), (lambda: made_once("x", full), "No space left")):
        found = on_a_host(find)
        assert len(set(found)) == 1
        assert told in found[0]


def test_temporary_folder_is_shared_by_a_launch_and_removed_by_the_last(tmp_path, monkeypatch):
    found, exits = FORK.SimpleQueue(), []
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(host.atexit, "register", exits.append)

    def rank(end):
        found.put(temporary_folder())
        end.wait(60)
        exits[0]()

    ends = [FORK.Event(), FORK.Event()]
    ranks = [FORK.Process(target=rank, args=(end,)) for end in ends]
    for process in ranks:
        process.start()
    [folder] = {found.get() for _ in ranks}
    assert folder.parent == tmp_path
    (folder / "shard.tar").touch()
    for process, end, exists in zip(ranks, ends, (True, False), strict=True):
        end.set()
        process.join()
        assert folder.exists() == exists


@pytest.mark.parametrize("removed_before", ["open", "flock"])
def test_a_temporary_folder_that_another_start_removes_is_made_again(tmp_path, monkeypatch, removed_before):
    """As unused, between its making and its lock: a lock on a deleted file would protect nothing."""
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    patched, removed = {"open": host.os, "flock": host.fcntl}[removed_before], []
    original = getattr(patched, removed_before)

    def removing(*arguments, **options):
        if not removed:
            removed.append(True)
            shutil.rmtree(tmp_path / f"fdtrain-{os.getuid()}-{os.getppid()}")
        return original(*arguments, **options)

    monkeypatch.setattr(patched, removed_before, removing)
    own = temporary_folder()
    monkeypatch.undo()
    assert removed
    with (own / "used.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_killed_launch_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    left = tmp_path / f"fdtrain-{os.getuid()}-1"
    left.mkdir()
    (left / "used.lock").touch()
    own = temporary_folder()
    assert not left.exists()
    assert own.exists()
