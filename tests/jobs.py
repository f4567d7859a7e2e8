"""Training jobs under way: started, watched, and looked into."""

import subprocess
import sys
import time
from collections.abc import Callable

import psutil
from conftest import ROOT, environment, free_port, launched
from forked import Forked


def start(command: list[str], kind: type[subprocess.Popen] = Forked, **variables: str) -> subprocess.Popen:
    """A job in a process group of its own; of ``subprocess.Popen``, as users start it."""
    pipe, all_variables = subprocess.PIPE, environment() | variables
    return kind(command, cwd=ROOT, env=all_variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def torchrun(command: list[str], *options: str) -> list[str]:
    """What is started without a launcher, by torchrun on this host."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *options, *command[1:]]


def end(job: subprocess.Popen, timeout: float = 180) -> str:
    """What a job that ends has said on stderr."""
    return job.communicate(timeout=timeout)[1]


def until(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def wait_for_step(launch, step: int, job: subprocess.Popen) -> None:
    """Until the run of ``launch``, which logs each step, has done ``step`` of them."""
    file = launch.run_folder() / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_line(job: subprocess.Popen, text: str) -> None:
    """Until a job has said it on stderr."""
    while text not in (line := job.stderr.readline()):
        assert line, job.wait()


def ranks_of(job: subprocess.Popen, launcher: str = "deepspeed") -> list[psutil.Process]:
    """The rank processes under a launcher, in order."""
    parent = psutil.Process(job.pid)
    if launcher == "deepspeed":
        # Of several hosts, this one's.
        (parent,) = parent.children()
    return sorted(parent.children(), key=lambda process: process.pid)


class Group:
    """Processes without a launcher that would end them; of ``count`` all, or the ``ranks`` that come."""

    def __init__(self, count: int, command: list[str], ranks: list[int] | None = None):
        port = free_port()
        self.jobs = [start(command, **launched(rank, count, port)) for rank in ranks or range(count)]

    def __enter__(self) -> list[subprocess.Popen]:
        return self.jobs

    def __exit__(self, *_):
        for job in self.jobs:
            job.kill()
            job.communicate()


def message(job: subprocess.Popen, timeout: float) -> str:
    """Its one line, and nothing else."""
    assert job.wait(timeout) == 1
    lines = job.stderr.read().splitlines()
    (line,) = [line for line in lines if line.startswith("fdtrain: error")]
    assert not any("Traceback" in line for line in lines)
    return line
