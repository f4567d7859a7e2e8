"""Signals while a run is in a long call, starts, or hangs; and a launcher that restarts what was killed."""

import os
import signal
import subprocess
import sys
import time

from checkpoints import assert_same
from conftest import ROOT, environment
from jobs import Group, end, ranks_of, start, wait_for_step

SETTINGS = ("training.steps=60", "checkpoint.every=50", "monitor.evaluate_every=20")


def test_a_second_signal_ends_a_process_at_once_even_in_a_call_that_hangs(launch):
    """Rank 0 alone waits for rank 1, which never comes."""
    program = (
        "import torch.distributed as dist, signal, time\n"
        "from fdtrain import distributed\n"
        "from fdtrain.errors import log_to_console\n"
        "from fdtrain.resilience.signals import handled\n"
        "log_to_console()\n"
        "distributed.connect(60)\n"
        "with handled(lambda: print('asked', flush=True), 'what it does'):\n"
        "    print('ready', flush=True)\n"
        "    if distributed.rank() == 1:\n"
        "        time.sleep(60)\n"
        "    dist.barrier()\n"
    )
    with Group(2, [sys.executable, "-c", program]) as (job, _):
        assert job.stdout.readline() == "ready\n"
        for _ in range(3):  # one wish, told three times
            job.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert job.stdout.readline() == "asked\n"
        assert job.stderr.readline() == "fdtrain: SIGTERM: what it does\n"
        time.sleep(2.1)
        assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 128 + signal.SIGTERM
        assert job.stdout.read() == ""


def test_during_a_long_first_step_the_console_says_what_a_signal_does(launch):
    """At once, from within a call that knows nothing of Python; and again ends it at once."""
    job = start(launch.command(*SETTINGS, processes=0, faults={"long": {"steps": [0]}}))
    while "a long call begins" not in (line := job.stderr.readline()):
        assert line, job.wait()
    job.send_signal(signal.SIGINT)
    assert job.stderr.readline() == "fdtrain: SIGINT: stopping after this step; again: at once\n"
    time.sleep(2.1)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == 128 + signal.SIGINT
    assert job.stderr.read() == ""


def test_a_closed_terminal_is_a_request_unless_nohup_has_it_ignored():
    program = (
        "import signal, sys\n"
        "from fdtrain.resilience.signals import handled\n"
        "with handled(lambda: print('asked', flush=True), 'what it does'):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    for before, expected in (([], ["asked"]), (["nohup"], [])):
        command = [*before, sys.executable, "-c", program]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe, text=True) as job:
            assert job.stdout.readline() == "ready\n"
            job.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            said = job.communicate("end\n", timeout=60)[0]
        assert (job.returncode, said.splitlines()) == (0, expected)


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


def test_torchrun_restarts_a_job_whose_rank_is_killed(launch, undisturbed, monkeypatch):
    """From the last checkpoint, by itself, to the same weights; the survivor has said which rank it was."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    script = launch.command(*SETTINGS, "checkpoint.every=5", processes=0, resume=True)[1:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    job = start([*torchrun, *script])
    wait_for_step(launch, 8, job)
    victim = ranks_of(job, "torchrun")[1].pid
    os.kill(victim, signal.SIGKILL)
    error = end(job)
    assert job.returncode == 0, error
    assert f"lost rank 1 (process {victim} on " in error
    assert "resuming after step" in error
    assert launch.losses() == undisturbed.losses()
    assert_same(launch.checkpoint(60), undisturbed.checkpoint(60))
