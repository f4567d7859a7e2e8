"""Two jobs on one folder: the second is refused while the first lives, and takes over when it is dead."""

import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment
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


def from_elsewhere(folder):
    """Make the lock look as if another machine had written it."""
    content = json.loads((folder / lock.FILE).read_text())
    touched = (folder / lock.FILE).stat().st_mtime_ns
    (folder / lock.FILE).write_text(json.dumps(content | {"host": "elsewhere", "boot": "another"}))
    os.utime(folder / lock.FILE, ns=(touched, touched))


def test_held_once_and_gone_afterwards(tmp_path):
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on host"), lock.held(tmp_path):
            pass
        assert (tmp_path / lock.FILE).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_is_named_and_a_dead_one_succeeded_at_once(tmp_path, holder):
    expected = f"{tmp_path} is in use by process {holder.pid} on host {platform.node()} ({tmp_path / lock.FILE})"
    with pytest.raises(UserError, match=re.escape(expected)), lock.held(tmp_path):
        pass
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with lock.held(tmp_path):
        assert time.monotonic() - begin < lock.STALE_SECONDS / 2
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_another_process_of_the_same_number(tmp_path):
    """Numbers are given anew: this very process, but of another start."""
    content = lock._describe()
    (tmp_path / lock.FILE).write_text(json.dumps(content | {"started": content["started"] - 1}))
    with lock.held(tmp_path):
        pass


def test_a_lock_of_another_machine_is_watched(tmp_path):
    """Touched while one looks on: alive."""
    content = lock._describe() | {"host": "elsewhere", "boot": "another", "pid": 17}
    (tmp_path / lock.FILE).write_text(json.dumps(content))
    end = threading.Event()

    def touch():
        while not end.wait(0.05):
            os.utime(tmp_path / lock.FILE)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(UserError, match="process 17 on host elsewhere"), lock.held(tmp_path, beat=0.1, stale=5):
            pass
    finally:
        end.set()
        toucher.join()


OWN = {key: value for key, value in lock._describe().items() if key != "pid"}
NAMELESS = [json.dumps(OWN | pid) for pid in ({}, {"pid": "4"}, {"pid": None}, {"pid": True})]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', *NAMELESS])
def test_a_lock_that_names_no_process_counts_by_its_age_alone(tmp_path, content):
    (tmp_path / lock.FILE).write_text(content)
    with lock.held(tmp_path, beat=0.05, stale=0.1):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_what_is_no_file_in_the_lock_s_place_is_named(tmp_path):
    places = [tmp_path / name for name in ("folder", "pipe", "link")]
    for place in places:
        place.mkdir()
    (places[0] / lock.FILE).mkdir()
    os.mkfifo(places[1] / lock.FILE)
    (places[2] / lock.FILE).symlink_to("nowhere")
    for place in places:
        with pytest.raises(UserError, match="is in the place of a lock and is no file"), lock.held(place):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"), lock.held(tmp_path / "file"):
        pass


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


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on host"), lock.held(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_beside_its_folder(tmp_path):
    """Which may be replaced as a whole meanwhile."""
    folder, file = tmp_path / "export", tmp_path / ".export.lock"
    folder.mkdir()
    with lock.held(folder, lock=file):
        folder.rename(tmp_path / "old")
        with pytest.raises(UserError, match=re.escape(f"{folder} is in use by")), lock.held(folder, lock=file):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_disk_that_answers_with_errors(tmp_path, monkeypatch):
    """They are borne while the lock stands, and one line where it cannot be had."""

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, lock.held(tmp_path, beat=0.02, gone=lambda: pytest.fail("gone")):
        patch.setattr(Path, "read_text", broken)
        time.sleep(0.2)
    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(UserError, match="Input/output error"), lock.held(tmp_path):
        pass


def test_a_process_that_wakes_after_its_lock_was_taken_ends(tmp_path, holder):
    """Stopped, it cannot touch its lock, which from another machine is all that can be seen of it."""
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    from_elsewhere(tmp_path)
    with lock.held(tmp_path, beat=0.1, stale=0.6):
        holder.send_signal(signal.SIGCONT)
        assert holder.wait(60) == 1
        assert f"was taken over by process {os.getpid()} on host" in holder.stderr.read()
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_of_many_that_take_over_at_once_one_has_it(tmp_path):
    """Each adds a line while it holds the lock, and finds nobody else's half-done."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fdtrain.errors import UserError\n"
        "from fdtrain import lock\n"
        "lock.SETTLE_SECONDS = 0.3\n"
        "folder = Path(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with lock.held(folder):\n"
        "        time.sleep(2)\n"
        "        print('held')\n"
        "except UserError:\n"
        "    print('refused')\n"
    )
    content = lock._describe()
    (tmp_path / lock.FILE).write_text(json.dumps(content | {"started": 0}))
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for job in jobs:
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        job.stdin.write("\n")
        job.stdin.flush()
    outcomes = sorted(job.communicate(timeout=180)[0].strip() for job in jobs)
    assert outcomes == ["held"] + ["refused"] * 5
    assert list(tmp_path.iterdir()) == []


def test_a_second_job_is_refused_and_the_first_goes_on(launch):
    """Two launches of the same configuration: the second says who is there, with exit code 2, and changes nothing."""
    first = start(launch.command("training.steps=100000", "checkpoint.every=100000", processes=0))
    try:
        wait_for_step(launch, 2, first)
        written = (launch.run_folder() / "config.yaml").stat().st_mtime_ns
        result = launch("training.lr=1", processes=0, rc=2)
        expected = f"small is in use by process {first.pid} on host {platform.node()} ({launch.run_folder() / 'lock'})"
        assert expected in result.stderr
        assert (launch.run_folder() / "config.yaml").stat().st_mtime_ns == written
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_a_lock_of_a_dead_host_is_taken_over_whatever_its_date(tmp_path, ahead):
    (tmp_path / lock.FILE).write_text(json.dumps(lock._describe() | {"host": "elsewhere", "boot": "another"}))
    os.utime(tmp_path / lock.FILE, (time.time() + ahead,) * 2)
    begin = time.monotonic()
    with lock.held(tmp_path, beat=0.05, stale=0.5):
        assert time.monotonic() - begin > (0.3 if ahead >= 0 else 0)
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_a_clock_set_forward_takes_no_lock_from_a_living_host(tmp_path):
    """It looks an hour old until its owner touches it again."""
    (tmp_path / lock.FILE).write_text('{"host": "elsewhere", "pid": 7}')
    os.utime(tmp_path / lock.FILE, (time.time() - 3600,) * 2)
    toucher = threading.Timer(0.5, os.utime, [tmp_path / lock.FILE])
    toucher.start()
    with pytest.raises(UserError, match="in use by process 7 on host elsewhere"), lock.held(tmp_path, beat=10):
        pass


def test_a_signal_ends_a_job_that_waits_for_a_lock(launch):
    launch.run_folder().mkdir(parents=True)
    (launch.run_folder() / lock.FILE).write_text('{"host": "elsewhere", "pid": 7}')
    os.utime(launch.run_folder() / lock.FILE, (time.time() + 3600,) * 2)
    with start(launch.command(processes=0)) as job:
        while "watching for up to 60 s whether it is alive" not in (line := job.stderr.readline()):
            assert line, job.wait()
        job.terminate()
        assert job.wait(60) == 75
        assert "nothing has been trained yet that could be saved; ending" in job.stderr.read()
