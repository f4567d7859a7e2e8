"""Shared fixtures: a packed data set, a small configuration, and real launches."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import connection
from pathlib import Path

import pytest
import yaml
from forked import Forked, run

from fdtrain.commands import entry
from fdtrain.data.pack import pack_digits
from fdtrain.resilience.signals import SIGNALS

ROOT = Path(__file__).resolve().parent.parent

# Under nohup or in the background these are ignored, also by what the tests start and send them to.
for number, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(autouse=True)
def _own_signals():
    """What a run in this process changes, which is its last run elsewhere, is not left to the next test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


FIRST = ("chaos", "test_notebook", "test_runs", "comparison", "two_nodes", "resilience", "training", "test_tools")
"""Parts of paths: what begins last, and takes minutes, is what all others wait for at the end."""


def pytest_collection_modifyitems(items) -> None:
    """The files of minutes come first."""
    items.sort(key=lambda item: next((i for i, part in enumerate(FIRST) if part in str(item.path)), len(FIRST)))


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The embedded data set, packed."""
    folder = tmp_path_factory.mktemp("digits")
    pack_digits(folder, shard_images=100)
    return folder


SMALL = {
    "name": "small",
    "data": {"workers": 1, "shuffle_window": 64},
    "network": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": [4], "fourier_features": 0},
    "training": {
        "steps": 6,
        "global_batch": 32,
        "lanes": 8,
        "precision": "fp32",
        "optimizer": "adamw",
        "lr": 1e-3,
        "warmup_steps": 0,
    },
    "ema": {"decay": 0.9},
    "checkpoint": {"every": 100},
    "monitor": {"log_every": 1},
}


class Launch:
    """Runs of the small configuration in a folder of their own."""

    def __init__(self, folder: Path, data: Path):
        self.folder = folder
        self.config = folder / "small.yaml"
        content = json.loads(json.dumps(SMALL))
        content["output"] = str(folder / "runs")
        content["data"]["path"] = str(data)
        self.config.write_text(yaml.safe_dump(content))

    def command(
        self, *settings: str, processes: int = 1, resume: bool = False, faults: dict | None = None
    ) -> list[str]:
        """``processes`` 0: without the launcher; ``faults``: see training/injected.py."""
        binary = Path(sys.executable).parent
        script = ["fdtrain/main.py"] if faults is None else ["tests/training/injected.py", json.dumps(faults)]
        arguments = [*script, "--config", str(self.config)]
        for setting in settings:
            arguments += ["--set", setting]
        if resume:
            arguments += ["--resume", "auto"]
        if processes == 0:
            return [sys.executable, *arguments]
        launcher = [str(binary / "deepspeed"), "--num_accelerators", str(processes), "--master_port", str(free_port())]
        return [*launcher, *arguments]

    def __call__(self, *settings: str, processes: int = 1, rc: int = 0, timeout: int = 240, **options):
        """Run to the end. Where ranks are to fail DeepSpeed's launcher starts them."""
        if rc == 0 or processes == 0:
            command = self.command(*settings, processes=0, **options)
            result = fork(command, self.folder, timeout, max(1, processes))
        else:
            command = self.command(*settings, processes=processes, **options)
            result = run(command, timeout, cwd=ROOT, env=environment())
        assert result.returncode == rc, result.stdout + result.stderr
        return result

    def run_folder(self, name: str = "small") -> Path:
        return self.folder / "runs" / name

    def checkpoint(self, step: int, name: str = "small") -> Path:
        return self.run_folder(name) / "checkpoints" / f"step_{step:08d}"

    def losses(self, name: str = "small") -> dict[int, float]:
        return {line["step"]: line["train/bits_per_dim"] for line in self.log(name) if "train/bits_per_dim" in line}

    def log(self, name: str = "small") -> list[dict]:
        return [json.loads(line) for line in (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()]


def fork(command: list[str], folder: Path, timeout: float = 240, processes: int = 1) -> subprocess.CompletedProcess:
    """Run ``script.py argument ...`` in so many ranks without a launcher; what they say goes into files of ``folder``.

    As under a launcher, the first one to fail ends the others and gives the exit code.
    """
    port, ranks = free_port(), []
    files = [(folder / f"stdout{rank}.txt", folder / f"stderr{rank}.txt") for rank in range(processes)]
    for rank, (stdout, stderr) in enumerate(files):
        variables = environment() | (launched(rank, processes, port) if processes > 1 else {})
        with stdout.open("w") as out, stderr.open("w") as err:
            ranks.append(Forked(command, cwd=ROOT, env=variables, stdout=out, stderr=err))
    code = _wait([rank.process for rank in ranks], timeout)
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout)
    output = ["".join(file.read_text() for file in of_all) for of_all in zip(*files)]
    return subprocess.CompletedProcess(command, code, *output)


def launched(rank: int, processes: int, port: int) -> dict[str, str]:
    """The variables that a launcher gives to a rank."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_SIZE": processes, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}


def _wait(ranks: list, timeout: float) -> int | None:
    """The exit code of the first to fail, or zero; None if some do not end in time. None runs any more."""
    deadline, running = time.monotonic() + timeout, list(ranks)
    while running and connection.wait([rank.sentinel for rank in running], deadline - time.monotonic()):
        if any(rank.exitcode for rank in running):
            break
        running = [rank for rank in running if rank.exitcode is None]
    codes = [rank.exitcode for rank in ranks if rank.exitcode]
    late = bool(running) and not codes
    for rank in running:
        rank.kill()
        rank.join()
    return None if late else next(iter(codes), 0)


@pytest.fixture
def command(capsys):
    """``fdtrain``, in this process: what it prints, or says where it ends with another code."""

    def run(*arguments: object, rc: int = 0) -> str:
        try:
            code = entry.main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert code == rc, said.out + said.err
        return said.err if rc else said.out

    return run


@pytest.fixture
def refused(launch, command):
    """What a run in this process says whose settings are wrong."""
    return lambda *settings, resume="never": error_of(
        command("train", "--config", launch.config, "--resume", resume, "--set", "seed=0", *settings, rc=2)
    )


def error_of(said: str) -> str:
    """The one line; nothing of a trace."""
    lines = [line for line in said.splitlines() if line.startswith("fdtrain: error")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


def environment() -> dict[str, str]:
    """One thread per process: results must not depend on how many cores the machine has."""
    own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": _path(), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own}


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def launch(tmp_path, digits) -> Launch:
    return Launch(tmp_path, digits)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, digits) -> Launch:
    """Sixty steps of two processes: what a run that was interrupted must end like."""
    launch = Launch(tmp_path_factory.mktemp("undisturbed"), digits)
    launch("training.steps=60", "monitor.evaluate_every=20", processes=2)
    return launch


@pytest.fixture(scope="module")
def hosts():
    from hosts import Hosts

    with Hosts() as made:
        yield made
