"""Shared fixtures: a packed data set, a small configuration, and real launches."""

import json
import os
import socket
import subprocess
import sys
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

    def command(self, *settings: str, processes: int = 1, resume: bool = False) -> list[str]:
        """``processes`` 0: without the launcher."""
        binary = Path(sys.executable).parent
        arguments = ["fdtrain/main.py", "--config", str(self.config)]
        for setting in settings:
            arguments += ["--set", setting]
        if resume:
            arguments += ["--resume", "auto"]
        if processes == 0:
            return [sys.executable, *arguments]
        launcher = [str(binary / "deepspeed"), "--num_accelerators", str(processes), "--master_port", str(free_port())]
        return [*launcher, *arguments]

    def __call__(self, *settings: str, processes: int = 1, resume: bool = False, rc: int = 0, timeout: int = 240):
        result = subprocess.run(
            self.command(*settings, processes=processes, resume=resume),
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert result.returncode == rc, result.stdout + result.stderr
        return result

    def run_folder(self, name: str = "small") -> Path:
        return self.folder / "runs" / name

    def losses(self, name: str = "small") -> dict[int, float]:
        return {line["step"]: line["train/loss"] for line in self.log(name) if "train/loss" in line}

    def log(self, name: str = "small") -> list[dict]:
        return [json.loads(line) for line in (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()]


def environment() -> dict[str, str]:
    """One thread per process: results must not depend on how many cores the machine has."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": _path()}


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def launch(tmp_path, digits) -> Launch:
    return Launch(tmp_path, digits)
