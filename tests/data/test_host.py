"""What the processes of a host share: read once, told to all, gone with the last of them."""

import fcntl
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from flaky import Flaky
from packed import pack

from fdtrain.data import host as module
from fdtrain.data import shard_table
from fdtrain.data.dataset import FILE
from fdtrain.data.host import made_once, temporary_folder
from fdtrain.data.location import locate
from fdtrain.errors import UserError

FORK = multiprocessing.get_context("fork")


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
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(module.atexit, "register", exits.append)

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
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    patched, removed = {"open": module.os, "flock": module.fcntl}[removed_before], []
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
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    left = tmp_path / f"fdtrain-{os.getuid()}-1"
    left.mkdir()
    (left / "used.lock").touch()
    own = temporary_folder()
    assert not left.exists()
    assert own.exists()
