"""A signal to any launcher, to one process or the whole group: saved, and gone on from as if nothing had happened.

CI takes what has failed; ``make signals`` takes every combination, or those whose name holds ``FDTRAIN_SIGNALS``.
"""

import os
import signal
import subprocess
import time
from itertools import product
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import psutil
import pytest
from checkpoints import assert_close, assert_same
from conftest import ROOT, Launch, environment
from forked import Forked
from jobs import end, ranks_of, torchrun, until, wait_for_step

SETTINGS = ("training.steps=16",)
CHOSEN = [
    # As `timeout`, SLURM, Kubernetes and systemd end a job, with threads that the reading processes have begun.
    ("python", SIGTERM, "group", 1, 2, None),
    ("torchrun", SIGTERM, "process", 2, 1, 1),
    # SLURM's warning, to one rank alone.
    ("deepspeed", SIGUSR1, "process", 2, 1, 1),
    # Ctrl-C: everything in the terminal's group at once, then the launcher rank after rank.
    ("deepspeed", SIGINT, "group", 2, 2, 1),
    # A closed ssh connection.
    ("deepspeed", SIGHUP, "group", 2, 1, 1),
]
EVERY = [
    case
    for case in product(
        ("python", "deepspeed", "torchrun"),
        (SIGTERM, SIGUSR1, SIGINT, SIGHUP),
        ("process", "group"),
        (1, 2),
        (0, 1, 2),
        (None, 1),
    )
    if not (case[0] == "python" and case[3] > 1)
]


def name(case) -> str:
    launcher, number, target, ranks, workers, threads = case
    return f"{launcher}-{signal.Signals(number).name}-{target}-{ranks}ranks-{workers}workers-{threads or 'all'}threads"


def cases():
    wanted = os.environ.get("FDTRAIN_SIGNALS")
    chosen = CHOSEN if wanted is None else [case for case in EVERY if wanted in name(case)]
    return [pytest.param(*case, id=name(case)) for case in chosen]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """By number of ranks, a run that nobody has interrupted."""
    runs = {}

    def of(ranks: int) -> Launch:
        if ranks not in runs:
            runs[ranks] = Launch(tmp_path_factory.mktemp("whole"), digits)
            runs[ranks](*SETTINGS, processes=0 if ranks == 1 else ranks)
        return runs[ranks]

    return of


def command(launch: Launch, launcher: str, settings: tuple[str, ...], number: int, ranks: int) -> list[str]:
    if launcher != "torchrun":
        return launch.command(*settings, processes=0 if launcher == "python" else ranks)
    handled = ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"] if number == SIGUSR1 else []
    return torchrun(launch.command(*settings, processes=0), f"--nproc-per-node={ranks}", *handled)


def code(launcher: str, number: int, target: str) -> int:
    """What the launcher makes of its ranks' 75 (docs/clusters.md)."""
    if launcher == "torchrun":
        return 1
    if launcher == "python" or target == "process":
        return 75
    # DeepSpeed's outer process dies by the signal; a shell says 128 + its number.
    return -number


@pytest.mark.parametrize(("launcher", "number", "target", "ranks", "workers", "threads"), cases())
def test_saved_and_gone_on_from(launch, whole, launcher, number, target, ranks, workers, threads):
    settings = (*SETTINGS, f"data.workers={workers}")
    variables = environment() | {"OMP_NUM_THREADS": str(threads)}
    if threads is None:
        del variables["OMP_NUM_THREADS"]
    # As users start it, or forked.
    job = (subprocess.Popen if threads is None else Forked)(
        command(launch, launcher, settings, number, ranks),
        cwd=ROOT,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_step(launch, 2, job)
    if target == "group":
        os.killpg(job.pid, number)
    else:
        # DeepSpeed's outer process is no place to signal (docs/clusters.md).
        os.kill(ranks_of(job)[-1].pid if launcher == "deepspeed" else job.pid, number)
    error = end(job)
    assert job.returncode == code(launcher, number, target), error
    assert error.count("fdtrain: stopped as asked after step") == 1
    assert "--resume auto goes on" in error
    assert "DataLoader worker" not in error
    # Other launchers end by an exception of their own.
    assert target == "group" or launcher == "torchrun" or "Traceback" not in error
    (saved,) = (launch.run_folder() / "checkpoints").glob("step_*")
    assert 2 < int(saved.name[5:]) < 16
    launch(*settings, processes=0 if ranks == 1 else ranks, resume=True)
    last, expected = launch.checkpoint(16), whole(ranks).checkpoint(16)
    assert [line["step"] for line in launch.log()] == list(range(1, 17))
    if threads == 1:
        assert launch.losses() == whole(ranks).losses()
        assert_same(last, expected)
    else:
        assert_close(last, expected, atol=1e-3)


def test_reading_processes_hear_their_parent_alone(launch):
    """No thread of theirs ends by a signal of the group's, and none outlives its parent."""
    variables = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    command = launch.command("training.steps=100000", "data.workers=2", processes=0)
    with Forked(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL, start_new_session=True) as job:
        wait_for_step(launch, 1, job)
        workers = psutil.Process(job.pid).children()
        assert len(workers) == 2
        for worker, number in product(workers, (SIGTERM, SIGUSR1, SIGINT, SIGHUP)):
            worker.send_signal(number)
        time.sleep(0.5)
        assert all(map(lives, workers))
        # Stopped, they could not look for their parent themselves.
        for worker in workers:
            worker.suspend()
        job.kill()
        job.wait()
        until(lambda: not any(map(lives, workers)), 30)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
