"""The first configuration that fdtrain pack writes beside what it packs."""

import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fork
from PIL import Image

from fdtrain.capacity.estimate import flops, known_dataset
from fdtrain.capacity.first_config import TABLE, first_settings, here, write_first_config
from fdtrain.capacity.layout import run_layout
from fdtrain.capacity.spec import model_spec
from fdtrain.capacity.target import Target
from fdtrain.commands.entry import main
from fdtrain.config import Config, load_config
from fdtrain.data.dataset import read_description
from fdtrain.data.shard_table import Shard, ShardTable
from fdtrain.errors import UserError

CPU, GPU, NODE = Target("cpu"), Target("cuda"), Target("cuda", 8)


def data(size: int, channels: int = 3, images: int = 50_000, test: int = 100, classes: int = 0):
    splits = {"train": images} | ({"test": test} if test else {})
    shards = {s: ShardTable.of([Shard(file=f"{s}.tar", images=n, bytes=1, sha256="0" * 64)]) for s, n in splits.items()}
    known = known_dataset("My photos, 2024", size, channels, 256, classes, images)
    return known.model_copy(update={"splits": shards})


def chosen(description, on: Target) -> Config:
    return Config.model_validate(first_settings(description, "data/mine", on))


@pytest.mark.parametrize("on", [CPU, GPU], ids=str)
@pytest.mark.parametrize("size", [32, max(TABLE["cpu"])])
def test_an_hour_of_work_for_each_size(size, on):
    config = chosen(data(size), on)
    training, monitor = config.training, config.monitor
    assert (config.name, config.data.test_split) == ("My-photos-2024", "test")
    operations = flops(model_spec(config, data(size))) * training.steps * training.global_batch
    assert operations <= {"cpu": 2e14, "cuda": 1e17}[on.device]
    assert training.steps >= 1000
    assert run_layout(training, on.devices).passes == 1
    # Watched often enough to see it learn, and to its end.
    assert 0 < training.warmup_steps <= training.steps / 20
    for every in (monitor.log_every, monitor.sample_every, monitor.evaluate_every, config.checkpoint.every):
        assert 1 <= every <= training.steps
    held_out = data(size).images("test")
    assert 500 <= held_out * monitor.evaluate_draws < 500 + held_out
    assert 0.9 < config.ema.decay < 1


def test_the_table_row_by_device():
    for device, channels, precision in ((CPU, 16, "fp32"), (GPU, 128, "bf16")):
        config = chosen(data(28, 1), device)
        assert (config.network.channels, config.training.precision) == (channels, precision)
        assert (config.network.multipliers, config.network.attention) == ((1, 2, 2), (14,))
    assert chosen(data(28, 1), GPU) == chosen(data(28, 1), NODE)
    assert chosen(data(1024), GPU).network.channels == chosen(data(256), GPU).network.channels
    # Every one of 64 GPUs has an image, though the table has sixteen.
    assert run_layout(chosen(data(256), Target("cuda", 64)).training, 64).micro_batch == 1


@pytest.mark.parametrize(("images", "steps", "dropout"), [(50, 1000, 0.1), (1920, 3000, 0.1), (10**6, 10_000, 0.0)])
def test_few_images_train_shorter_but_a_thousand_steps(images, steps, dropout):
    config = chosen(data(32, images=images), GPU)
    assert (config.training.steps, config.network.dropout) == (steps, dropout)


@pytest.mark.parametrize(("size", "on", "smaller"), [(100, CPU, 32), (512, NODE, 256), (256, GPU, None)])
def test_a_note_on_large_images(size, on, smaller, tmp_path):
    notes = [line for line in write_first_config(tmp_path, data(size), on) if line.startswith("note: ")]
    large = f"note: {size}x{size} images are large for a first run on {on}. Pack smaller: --size {smaller}."
    assert notes == ([large] if smaller else [])


@pytest.fixture
def pack(command):
    return partial(command, "pack")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Forty pictures of several sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(0)
    for i in range(40):
        pixels = draw.integers(0, 256, (20 + i % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_from_a_folder_to_a_run_by_the_printed_commands(photographs, tmp_path, pack, capsys):
    mine = tmp_path / "my photographs"
    folder = ["images", photographs, mine, "--size", "16", "--workers", "1", "--for", "cpu"]
    said = pack(*folder)
    file = mine / "train.yaml"
    *_, what, _, plan, _, train = said.splitlines()
    assert what == f"{file}: 1.1 M parameters, 1,000 steps of 64 images, for cpu"
    config = load_config(file)
    assert (config.name, config.data.path) == ("my-photographs", str(mine))
    # Nothing was held out.
    assert config.data.test_split is None
    assert config.monitor.evaluate_every is None
    assert file.read_text().startswith(f"# A first configuration for {mine}: 40 images of 16x16, RGB, on cpu.")
    python, m, package, *arguments = shlex.split(plan)
    assert (python, m, package) == ("python", "-m", "fdtrain")
    assert main(arguments) == 0
    assert "images (3, 16, 16) of 256 levels" in capsys.readouterr().out
    python, m, package, *arguments = shlex.split(train)
    settings = ["training.steps=2", "training.global_batch=16", "network.channels=8", f"output={tmp_path}"]
    settings += ["monitor.sample_steps=1", "monitor.sample_images=1"]
    done = fork(["fdtrain/__main__.py", *arguments, "--set", *settings], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-photographs" / "checkpoints" / "step_00000002").is_dir()
    file.write_text("name: edited\n")
    assert "train.yaml is there already, and stays as it is" in pack(*folder)
    assert file.read_text() == "name: edited\n"


def test_what_is_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert here() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert here() == Target("cuda", 4)


def test_a_folder_that_cannot_be_written_is_named(digits):
    with pytest.raises(UserError, match="cannot write"):
        write_first_config(Path("/proc/nowhere"), read_description(digits), CPU)
