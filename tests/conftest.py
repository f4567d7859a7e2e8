"""Shared fixtures: a packed data set, a small configuration, and real launches."""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import yaml

from fdtrain.data.pack import pack_digits

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The embedded data set, packed."""
    folder = tmp_path_factory.mktemp("digits")
    pack_digits(folder, shard_images=100)
    return folder


SMALL = {
    "name": "small",
    "data": {"workers": 1, "shuffle_window": 64},
    "network": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": [4]},
    "training": {
        "steps": 6,
        "global_batch": 32,
        "lanes": 8,
        "precision": "fp32",
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
        command = self.command(*settings, processes=processes, **options)
        if processes == 0:
            result = fork(command[1:], self.folder, timeout)
        else:
            result = subprocess.run(
                command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
            )
        assert result.returncode == rc, result.stdout + result.stderr
        return result

    def run_folder(self, name: str = "small") -> Path:
        return self.folder / "runs" / name

    def checkpoint(self, step: int, name: str = "small") -> Path:
        return self.run_folder(name) / "checkpoints" / f"step_{step:08d}"

    def losses(self, name: str = "small") -> dict[int, float]:
        return {line["step"]: line["train/loss"] for line in self.log(name) if "train/loss" in line}

    def log(self, name: str = "small") -> list[dict]:
        return [json.loads(line) for line in (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()]


def fork(command: list[str], folder: Path, timeout: int = 240) -> subprocess.CompletedProcess:
    """Run ``script.py argument ...`` in a process that has torch and DeepSpeed imported already.

    It is forked from a server that does nothing but import them, once for all tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fdtrain.training.build"])
    files = folder / "stdout.txt", folder / "stderr.txt"
    kept, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), "1"
    try:
        process = context.Process(target=_run_script, args=(command, files, environment()))
        process.start()
    finally:
        os.environ.pop("OMP_NUM_THREADS") if kept is None else os.environ.update(OMP_NUM_THREADS=kept)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise subprocess.TimeoutExpired(command, timeout)
    output = [file.read_text() for file in files]
    return subprocess.CompletedProcess(command, process.exitcode, *output)


def _run_script(command: list[str], files: tuple[Path, Path], variables: dict[str, str]) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # Python's own streams may have been replaced by pytest's in what was forked.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    # The child of a server would start its own workers through it.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
