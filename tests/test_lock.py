"""Two jobs on one folder: the second is refused while the first lives, and takes over when it is dead."""

import errno
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from jobs import start, wait_for_step

from fdtrain import lock
from fdtrain.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from fdtrain.lock import held
with held(Path(sys.argv[1]), beat=0.1, stale=0.6):
    print("held", flush=True)
    time.sleep(60)
"""
FORK = multiprocessing.get_context("fork")
# Of another machine, whose processes cannot be seen from here.
ELSEWHERE = '{"host": "elsewhere", "pid": 17}'


@pytest.fixture
def holder(tmp_path):
    """A living process that holds the lock."""
    job = start([sys.executable, "-c", HOLD, str(tmp_path)])
    assert job.stdout.readline() == "held\n"
    yield job
    job.kill()
    job.communicate()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)


def owner(folder) -> int:
    return json.loads((folder / lock.FILE).read_text())["pid"]


def refused(folder, match, **options) -> None:
    with pytest.raises(UserError, match=match), lock.held(folder, **options):
        pass


def no_hard_links(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("link", [os.link, no_hard_links])
def test_held_once_and_gone_afterwards(tmp_path, monkeypatch, link):
    """Also on disks without hard links."""
    monkeypatch.setattr(os, "link", link)
    with lock.held(tmp_path):
        refused(tmp_path, f"in use by process {os.getpid()} on host")
        assert owner(tmp_path) == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_is_named_and_a_dead_one_succeeded_at_once(tmp_path, holder):
    refused(tmp_path, f"in use by process {holder.pid} on host {platform.node()} \\({re.escape(str(tmp_path))}/lock")
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with lock.held(tmp_path):
        assert time.monotonic() - begin < lock.STALE_SECONDS / 2
        assert owner(tmp_path) == os.getpid()


def test_another_process_of_the_same_number(tmp_path):
    """Numbers are given anew: this very process, but of another start."""
    content = lock._describe()
    (tmp_path / lock.FILE).write_text(json.dumps(content | {"started": content["started"] - 1}))
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("age", [0, 3600])
def test_a_lock_of_another_machine_that_is_touched_while_one_looks_on(tmp_path, age):
    """Its owner lives, also where a clock says that it is an hour old."""
    (tmp_path / lock.FILE).write_text(ELSEWHERE)
    os.utime(tmp_path / lock.FILE, (time.time() - age,) * 2)
    toucher = threading.Timer(0.5, os.utime, [tmp_path / lock.FILE])
    toucher.start()
    refused(tmp_path, "in use by process 17 on host elsewhere", beat=10 if age else 0.1)


OWN = {key: value for key, value in lock._describe().items() if key != "pid"}


@pytest.mark.parametrize("content", ["", "[1]", json.dumps(OWN), json.dumps(OWN | {"pid": True})])
def test_a_lock_that_names_no_process_counts_by_its_age_alone(tmp_path, content):
    (tmp_path / lock.FILE).write_text(content)
    with lock.held(tmp_path, beat=0.05, stale=0.1):
        assert owner(tmp_path) == os.getpid()


def test_what_is_no_file_in_the_lock_s_place_is_named(tmp_path):
    places = [tmp_path / name for name in ("folder", "pipe", "link")]
    for place in places:
        place.mkdir()
    (places[0] / lock.FILE).mkdir()
    os.mkfifo(places[1] / lock.FILE)
    (places[2] / lock.FILE).symlink_to("nowhere")
    for place in places:
        refused(place, "is in the place of a lock and is no file")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", r"cannot be written \(Not a directory\)")


@pytest.mark.parametrize("replace", [None, Path.touch, Path.mkdir])
def test_a_folder_that_disappears_is_reported_once(tmp_path, replace):
    folder, reports = tmp_path / "run", []
    folder.mkdir()
    with lock.held(folder, beat=0.02, gone=lambda: reports.append(1)):
        folder.rename(tmp_path / "away")
        if replace:
            replace(folder)
        deadline = time.monotonic() + 30
        while not reports:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
    assert reports == [1]


def test_a_disk_that_answers_with_errors(tmp_path, monkeypatch):
    """They are borne while the lock stands, and one line where it cannot be had."""

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, lock.held(tmp_path, beat=0.02, gone=lambda: pytest.fail("gone")):
        patch.setattr(Path, "read_text", broken)
        time.sleep(0.2)
    monkeypatch.setattr(os, "link", broken)
    refused(tmp_path, "Input/output error")


def test_a_process_that_wakes_after_its_lock_was_taken_ends(tmp_path, holder):
    """Stopped, it cannot touch its lock, which from another machine is all that can be seen of it."""
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    (tmp_path / lock.FILE).write_text(ELSEWHERE)
    with lock.held(tmp_path, beat=0.1, stale=0.6):
        holder.send_signal(signal.SIGCONT)
        assert holder.wait(60) == 1
        assert f"was taken over by process {os.getpid()} on host" in holder.stderr.read()
        assert owner(tmp_path) == os.getpid()


def test_of_many_that_take_over_at_once_one_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.5)
    (tmp_path / lock.FILE).write_text(json.dumps(lock._describe() | {"started": 0}))
    begin, end, outcomes = FORK.Barrier(6), FORK.Barrier(6), FORK.SimpleQueue()

    def take() -> None:
        begin.wait(60)
        try:
            with lock.held(tmp_path):
                outcomes.put("held")
                end.wait(60)
        except UserError:
            outcomes.put("refused")
            end.wait(60)

    jobs = [FORK.Process(target=take) for _ in range(6)]
    for job in jobs:
        job.start()
    assert sorted(outcomes.get() for _ in jobs) == ["held"] + ["refused"] * 5
    for job in jobs:
        job.join()
    assert list(tmp_path.iterdir()) == []


def test_a_second_job_is_refused_and_the_first_goes_on(launch, command):
    """Two runs of the same configuration: the second says who is there, with exit code 2, and changes nothing."""
    first = start(launch.command("training.steps=100000", "checkpoint.every=100000", processes=0))
    try:
        wait_for_step(launch, 2, first)
        written = (launch.run_folder() / "config.yaml").stat().st_mtime_ns
        said = command("train", "--config", launch.config, "--set", "training.lr=1", rc=2)
        assert f"small is in use by process {first.pid} on host {platform.node()}" in said
        assert (launch.run_folder() / "config.yaml").stat().st_mtime_ns == written
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_a_lock_of_a_dead_host_is_taken_over_whatever_its_date(tmp_path, ahead):
    (tmp_path / lock.FILE).write_text(ELSEWHERE)
    os.utime(tmp_path / lock.FILE, (time.time() + ahead,) * 2)
    begin = time.monotonic()
    with lock.held(tmp_path, beat=0.05, stale=0.5):
        assert time.monotonic() - begin > (0.3 if ahead >= 0 else 0)
        assert owner(tmp_path) == os.getpid()


def test_a_signal_ends_a_job_that_waits_for_a_lock(launch):
    launch.run_folder().mkdir(parents=True)
    (launch.run_folder() / lock.FILE).write_text(ELSEWHERE)
    os.utime(launch.run_folder() / lock.FILE, (time.time() + 3600,) * 2)
    with start(launch.command(processes=0)) as job:
        while "watching for up to 60 s whether it is alive" not in (line := job.stderr.readline()):
            assert line, job.wait()
        job.terminate()
        assert job.wait(60) == 75
        assert "nothing has been trained yet that could be saved; ending" in job.stderr.read()
