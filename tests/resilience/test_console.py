"""A console that takes no line costs the line: not the run, its checkpoint, or its exit code."""

import logging
import os
import signal
import subprocess
import time

from conftest import ROOT, environment
from jobs import wait_for_step

from fdtrain import console


def begin(command: list[str], shell: str) -> subprocess.Popen:
    """A command whose output goes where ``shell`` says."""
    return subprocess.Popen(["bash", "-c", f'"$@" {shell}', "bash", *command], cwd=ROOT, env=environment())


def test_a_run_whose_lines_cannot_be_written_trains_to_its_end(launch):
    command = launch.command("checkpoint.every=2", "monitor.sample_every=2", processes=0)
    assert begin(command, "2>&- >&-").wait(180) == 0
    assert launch.losses().keys() == set(range(1, 7))
    assert launch.checkpoint(6).exists()


def test_an_error_that_cannot_be_said_has_its_exit_code(launch):
    assert begin(launch.command("training.lr=-1", processes=0), "2>/dev/full").wait(60) == 2


def test_an_interrupt_whose_reader_ends_first(launch):
    """As of `| tee log`, which a Ctrl-C ends at once: the run saves without it, and has its exit code."""
    reader, writer = os.pipe()
    command = launch.command("training.steps=100000", processes=0)
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=writer, stderr=writer) as job:
        os.close(writer)
        wait_for_step(launch, 3, job)
        os.close(reader)
        job.send_signal(signal.SIGINT)
        assert job.wait(180) == 75
    (saved,) = (launch.run_folder() / "checkpoints").glob("step_*")
    assert launch.losses().keys() == set(range(1, int(saved.name[5:]) + 1))


def test_work_without_a_progress_bar_is_heard_of_and_the_inner_one_speaks(monkeypatch, caplog):
    monkeypatch.setattr(console, "SILENCE", 0.01)
    caplog.set_level(logging.INFO, "fdtrain")

    def heard(what: str) -> None:
        caplog.clear()
        deadline = time.monotonic() + 30
        while not any(what in message for message in caplog.messages):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with console.phase("outer"):
        heard("outer ... 0 s")
        with console.phase("inner"):
            heard("inner")
            caplog.clear()
            time.sleep(0.1)
            assert not any("outer" in message for message in caplog.messages)
        heard("outer")
    caplog.clear()
    time.sleep(0.05)
    assert not caplog.messages
