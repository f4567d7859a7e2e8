"""Signals while a run is in a long call, starts, or hangs; and a launcher that restarts what was killed."""

import os
import signal
import time

import pytest
from jobs import end, ranks_of, start, torchrun, wait_for_line, wait_for_step

from fdtrain.resilience.signals import handled

SETTINGS = ("training.steps=30", "checkpoint.every=5")


def test_during_a_long_first_step_the_console_says_what_a_signal_does(launch):
    """At once, from within a call that knows nothing of Python; and again, later than one wish is told, ends it."""
    job = start(launch.command(*SETTINGS, processes=0, faults={"long": {"steps": [0]}}))
    wait_for_line(job, "a long call begins")
    for _ in range(3):  # one wish, told three times
        job.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert job.stderr.readline() == "fdtrain: SIGINT: stopping after this step; again: at once\n"
    time.sleep(2.1)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == 128 + signal.SIGINT
    assert job.stderr.read() == ""


@pytest.mark.parametrize(("before", "expected"), [(signal.SIG_DFL, ["asked"]), (signal.SIG_IGN, [])])
def test_a_closed_terminal_is_a_request_unless_nohup_has_it_ignored(before, expected):
    asked = []
    signal.signal(signal.SIGHUP, before)
    with handled(lambda: asked.append("asked"), "what it does"):
        signal.raise_signal(signal.SIGHUP)
    # Its thread has answered what there was to answer before it ends.
    assert asked == expected


def test_before_training(launch):
    """A signal during start-up ends the run with the same code: there is nothing to save."""
    job = start(launch.command(*SETTINGS, processes=0))
    time.sleep(0.05)
    while not signal_is_caught(job.pid):
        assert job.poll() is None
        time.sleep(0.01)
    job.terminate()
    error = end(job)
    assert job.returncode == 75
    assert "fdtrain: SIGTERM: nothing has been trained yet that could be saved; ending" in error
    assert not (launch.run_folder() / "checkpoints").exists()


def signal_is_caught(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_torchrun_restarts_a_job_whose_rank_is_killed(launch, monkeypatch):
    """From the last checkpoint, by itself; the survivor has said which rank it was."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    command = launch.command(*SETTINGS, processes=0, resume=True)
    job = start(torchrun(command, "--nproc-per-node=2", "--max-restarts=2"))
    wait_for_step(launch, 8, job)
    victim = ranks_of(job, "torchrun")[1].pid
    os.kill(victim, signal.SIGKILL)
    error = end(job)
    assert job.returncode == 0, error
    assert f"lost rank 1 (process {victim} on " in error
    assert "resuming after step" in error
    assert list(launch.losses()) == list(range(1, 31))
