"""The first configuration that fdtrain pack writes beside what it packs."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, environment, fork
from PIL import Image

from fdtrain.capacity.suggest import Machine
from fdtrain.config import load_config
from fdtrain.data.dataset import read_description
from fdtrain.errors import UserError
from fdtrain.training import starter


def tool(name, *arguments):
    command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Forty pictures of several sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(0)
    for i in range(40):
        pixels = draw.integers(0, 256, (20 + i % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_from_a_folder_to_a_run_by_the_printed_command(photographs, tmp_path):
    mine = tmp_path / "my photographs"
    said = tool("pack", "images", photographs, mine, "--resize", "16", "--workers", "1")
    file = mine / "train.yaml"
    *_, forecast, to_train, command = said.splitlines()
    assert forecast.startswith(f"{file}: ")
    assert to_train == "To train:"
    config = load_config(file)
    assert (config.name, config.data.path) == ("my-photographs", str(mine))
    # Nothing was held out.
    assert config.data.test_split is None
    assert config.monitor.evaluate_every is None
    assert file.read_text().startswith(f"# A first configuration for {mine}: 40 images of 16x16, RGB, for this CPU")
    assert "images (3, 16, 16) of 256 levels" in tool("plan", file)
    python, *arguments = shlex.split(command)
    assert python == "python"
    settings = ["training.steps=2", "training.global_batch=16", "network.channels=8", f"output={tmp_path}"]
    settings += ["monitor.sample_steps=1", "monitor.sample_images=1"]
    done = fork([*arguments, *(a for s in settings for a in ("--set", s))], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-photographs" / "checkpoints" / "step_00000002").is_dir()


def test_a_file_of_the_user_stays(photographs, tmp_path):
    mine = tmp_path / "mine"
    arguments = ["images", photographs, mine, "--resize", "8", "--holdout", "4", "--workers", "1"]
    tool("pack", *arguments)
    assert load_config(mine / "train.yaml").data.test_split == "test"
    (mine / "train.yaml").write_text("name: edited\n")
    said = tool("pack", *arguments)
    assert "train.yaml is there already, and stays as it is" in said
    assert (mine / "train.yaml").read_text() == "name: edited\n"


def test_several_gpus_are_launched_by_deepspeed(digits, tmp_path, monkeypatch):
    rates = {"fp32": 5e13, "bf16": 6e14}
    machine = Machine(
        "cuda", 4, 80 * 2**30, rates, lambda spec, precision, *rest: {"fp32": 3e3, "bf16": 2e4}[precision]
    )
    monkeypatch.setattr(starter, "this_machine", lambda: machine)
    monkeypatch.setattr(starter.hardware, "name", lambda device: f"{device.type} of a test")
    *_, forecast, _, command = starter.write_first_config(tmp_path, read_description(digits))
    assert "bf16" in forecast
    assert "4 GPUs, each cuda of a test" in forecast
    assert command.strip().startswith("deepspeed --num_accelerators 4 ")


def test_this_machine():
    machine = starter.this_machine()
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.count >= 1
    assert 2**28 < machine.memory < 2**50
    assert all(1e6 < rate < 1e17 for rate in machine.rates.values())


def test_a_folder_that_cannot_be_written_is_named(digits):
    with pytest.raises(UserError, match="cannot write"):
        starter.write_first_config(Path("/proc/nowhere"), read_description(digits))
