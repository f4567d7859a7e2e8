"""When a launcher is killed, nothing that it has started stays behind; what was started by hand does."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
from conftest import ROOT, environment
from jobs import ranks_of, start, wait_for_step

from fdtrain.errors import Preempted
from fdtrain.resilience import launcher

# What starts the child leaves it behind when it is killed.
PARENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
CHILD = """
import os, time
from fdtrain.resilience import launcher
with launcher.watched(time.sleep), launcher.watched(launcher.end):
    print(os.getpid(), flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize(
    ("variables", "ends"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}, True),
        ({"CROSS_RANK": "0", "RANK": "0"}, True),
        ({"RANK": "0"}, False),
    ],
    ids=["torchrun", "DeepSpeed", "by hand"],
)
def test_a_process_ends_with_its_launcher_alone(variables, ends):
    job = start([sys.executable, "-c", PARENT, CHILD], subprocess.Popen, **variables)
    child = psutil.Process(int(job.stdout.readline()))
    job.kill()
    job.wait()
    try:
        if ends:
            assert child.wait(60) is None
        else:
            with pytest.raises(psutil.TimeoutExpired):
                child.wait(4)
    finally:
        if child.is_running():
            child.kill()


@pytest.mark.parametrize(("program", "number"), [("torchrun", signal.SIGKILL), ("deepspeed", signal.SIGTERM)])
def test_a_run_saves_and_ends_when_its_launcher_is_gone(launch, program, number):
    """Its reading processes too. The signal is to the launcher's first process alone."""
    settings = ("training.steps=100000", "data.workers=1")
    command = launch.command(*settings, processes=2)
    if program == "torchrun":
        script = launch.command(*settings, processes=0)[1:]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    job = start(command, subprocess.Popen)
    wait_for_step(launch, 2, job)
    ranks = ranks_of(job, program)
    started = psutil.Process(job.pid).children(recursive=True)
    assert len(started) >= 4
    os.kill(job.pid, number)
    job.wait(60)
    try:
        for process in psutil.wait_procs(started, timeout=120)[1]:
            pytest.fail(f"{process.pid} is still there: {process.cmdline()}")
    finally:
        for process in started:
            if process.is_running():
                process.kill()
    said = job.communicate()[1]
    assert len(ranks) == 2
    # DeepSpeed's may pass the signal on before it ends.
    passed_on = program == "deepspeed" and "SIGTERM" in said
    assert passed_on or "fdtrain: the launcher has ended, and so do its processes." in said
    assert "stopped as asked after step" in said, said
    assert "Traceback" not in said
    assert len(list((launch.run_folder() / "checkpoints").glob("step_*"))) == 1


def test_a_process_that_is_ending_is_not_ended_by_what_held_before():
    """The launcher may be missed only while the exception passes through the outer contexts."""
    left = []

    @contextmanager
    def between():
        try:
            yield
        finally:
            left.append(list(launcher._answers))

    with launcher.watched(launcher.end), between(), launcher.watched(time.sleep):
        assert len(launcher._answers) == 2
    with pytest.raises(Preempted), launcher.watched(launcher.end), between(), launcher.watched(time.sleep):
        raise Preempted
    assert left == [[launcher.end], []]
    assert launcher._answers == []


def test_a_rank_that_another_rank_asked_to_end_says_why(monkeypatch, caplog):
    """It ends before its own look at the launcher."""
    monkeypatch.setattr(launcher, "_told", threading.Lock())
    for followed, lines in [([], 0), ([os.getppid()], 0), ([launcher.NOBODY], 1), ([launcher.NOBODY], 1)]:
        monkeypatch.setattr(launcher, "_followed", followed)
        with pytest.raises(Preempted), launcher.watched(launcher.end), launcher.watched(time.sleep):
            raise Preempted
        assert caplog.text.count("the launcher has ended") == lines


# The expression takes for ever, and lets no other thread of its process do anything meanwhile.
HOSTILE = """
import re
from fdtrain.data import workers

task = ("(a+)+$", 60 * "a" + "b")
list(workers.run(re.match, [task, task], 2))
"""


def test_a_worker_ends_with_its_parent_whatever_it_is_in():
    job = subprocess.Popen([sys.executable, "-c", HOSTILE], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    workers = []
    try:
        deadline = time.monotonic() + 120
        while not workers or max(worker.cpu_times().user for worker in workers) < 3:
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.2)
            workers = psutil.Process(job.pid).children()
        job.terminate()
        job.wait(60)
        assert psutil.wait_procs(workers, timeout=60)[1] == []
    finally:
        for process in [job, *workers]:
            if isinstance(process, subprocess.Popen) or process.is_running():
                process.kill()
        job.wait()
