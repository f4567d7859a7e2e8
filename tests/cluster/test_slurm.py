"""The batch script under SLURM itself: what is requeued, what is counted, and that the run goes on."""

import os
from functools import partial

import pytest
from jobs import until
from slurm import Slurm

pytestmark = pytest.mark.cluster
STEPS = 200


@pytest.fixture(scope="module")
def slurm(hosts, tmp_path_factory):
    with Slurm(hosts, tmp_path_factory.mktemp("slurm")) as made:
        yield made


def command(launch, *settings: str) -> list[str]:
    return launch.command(f"training.steps={STEPS}", "checkpoint.every=20", *settings, processes=0)[1:]


def trains(slurm, job: str, resumed: int) -> bool:
    """Whether a job that was resumed so often has done three steps since."""
    lives = slurm.output(job).split("resuming after step")
    return len(lives) == resumed + 1 and lives[-1].count("\nstep ") >= 3


def test_a_mistake_of_the_users_ends_the_job(launch, slurm):
    """SLURM ends the task that is slower to say it, which leaves 143, more than 2."""
    job = slurm.train(command(launch, "data.path=/nowhere"))
    assert slurm.end(job) == ("FAILED", "2:0", 0), slurm.output(job)
    assert "no folder /nowhere" in slurm.output(job)
    assert not list(slurm.folder.glob("*.failures"))


def test_failures_are_counted(slurm, tmp_path):
    """Of ranks of straw: the first fails to save, twice; the second is ended by SLURM."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$RANK" = 0 ]; then exit 74; fi\nexec sleep 1000\n')
    python.chmod(0o755)
    job = slurm.train([], PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", MAX_RESTARTS="1")
    assert slurm.end(job) == ("FAILED", "74:0", 1), slurm.output(job)
    assert slurm.output(job).count("fdtrain ended with 74; requeued (1 of 1 failures)") == 1
    assert not list(slurm.folder.glob("*.failures"))


def test_pre_empted_and_warned_runs_go_on_and_are_not_counted(launch, slurm):
    job = slurm.train(command(launch), MAX_RESTARTS="0")
    until(partial(trains, slurm, job, 0), 300)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    assert slurm.end(urgent)[0] == "COMPLETED"
    until(partial(trains, slurm, job, 1), 300)
    # As five minutes before the end of its time.
    slurm.ask("scancel", "--signal=USR1", job)
    until(partial(trains, slurm, job, 2), 300)
    assert slurm.end(job) == ("COMPLETED", "0:0", 2), slurm.output(job)
    assert slurm.output(job).count("fdtrain ended with 75; requeued (0 of 0 failures)") == 2
    assert list(launch.losses()) == list(range(1, STEPS + 1))
    assert not list(slurm.folder.glob("*.failures"))
