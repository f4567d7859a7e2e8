"""Whole runs in real processes, through DeepSpeed's launcher where there are several."""

import json

import pytest
import torch
import yaml
from checkpoints import assert_same
from conftest import Launch

from fdtrain.training.plan import prepare


@pytest.fixture(scope="module")
def reference(tmp_path_factory, digits):
    """One process, one pass per step, fp32: what every other division of the work must reproduce."""
    launch = Launch(tmp_path_factory.mktemp("reference"), digits)
    launch(processes=0)
    return launch.losses()


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (0, ["data.workers=0", "training.micro_batch=16"]),
        (0, ["data.workers=3", "training.zero_stage=0", "training.micro_batch=8"]),
        (2, ["training.zero_stage=2", "training.micro_batch=8"]),
    ],
    ids=["workers0_accumulation2", "workers3_zero0_accumulation4", "processes2_zero2_accumulation2"],
)
def test_the_loss_curve_does_not_depend_on_the_division_of_work(launch, reference, processes, settings):
    launch(*settings, processes=processes)
    assert launch.losses() == {step: pytest.approx(value, rel=1e-5) for step, value in reference.items()}


def test_a_run_keeps_the_lanes_that_it_began_with_and_may_change_its_precision(launch):
    """Lanes where its configuration leaves them to a default, which may have become another."""
    launch("training.lanes=4", "training.zero_stage=0", "training.precision=bf16", "training.steps=3", processes=0)
    content = yaml.safe_load(launch.config.read_text())
    del content["training"]["lanes"]
    launch.config.write_text(yaml.safe_dump(content))
    assert prepare(str(launch.config), [], resume=True).config.training.lanes == 4
    assert prepare(str(launch.config), ["name=new"], resume=True).config.training.lanes == 32
    launch("training.zero_stage=0", "training.precision=fp16", processes=0, resume=True)
    assert launch.losses().keys() == set(range(1, 7))


@pytest.mark.parametrize(
    ("processes", "precision", "stage", "optimizer"),
    [(0, "fp16", 0, "adamw"), (2, "fp32", 1, "adamw"), (0, "bf16", 0, "muon")],
    ids=["fp16_zero0", "fp32_zero1_processes2", "bf16_zero0_muon"],
)
def test_resuming_is_bit_identical(launch, processes, precision, stage, optimizer):
    """Dropout included. The log's window is open at the checkpoint, and carried over."""
    settings = ["network.dropout=0.2", "checkpoint.every=3", "monitor.log_every=2", "monitor.sample_every=4"]
    settings += ["monitor.sample_images=3", "monitor.sample_steps=2", "monitor.evaluate_every=3"]
    settings += [f"training.precision={precision}", f"training.zero_stage={stage}", f"training.optimizer={optimizer}"]
    keys = ("step", "train/bits_per_dim", "train/gradient_norm", "test/bits_per_dim")

    def logged():
        return [{key: line[key] for key in keys if key in line} for line in launch.log()]

    launch(*settings, processes=processes)
    whole, last = logged(), launch.checkpoint(6).rename(launch.folder / "whole")
    # As after a kill between steps 3 and 6: the newest checkpoint is that of step 3.
    assert "resuming after step 3 of 6" in launch(*settings, processes=processes, resume=True).stderr
    assert_same(last, launch.checkpoint(6))
    assert logged() == whole
    assert [line["step"] for line in whole if "train/bits_per_dim" in line] == [2, 4, 6]


def test_what_a_run_leaves_behind(launch):
    settings = ["training.steps=8", "checkpoint.every=1", "checkpoint.keep_last=2", "checkpoint.keep_every=4"]
    settings += ["monitor.sample_every=8", "monitor.sample_images=4", "monitor.sample_steps=3"]
    settings += ["monitor.evaluate_every=8", "monitor.log_every=4"]
    said = launch(*settings, processes=2, faults={"devices": ["H100", "A100"]}).stderr
    told = "warning: the devices of this launch differ (1 x H100, 1 x A100): every step waits for the slowest."
    assert said.count(told) == 1
    lines = [line for line in said.splitlines() if line.startswith("step ") and "images/s" in line]
    assert [line.split()[1] for line in lines] == ["4/8", "8/8"]
    assert "bits/dim" in lines[0]
    folder = launch.run_folder()

    def names(*inner):
        return {path.name for path in folder.joinpath(*inner).iterdir()}

    files = {"config.yaml", "dataset.json", "environment.json", "metrics.jsonl"}
    assert names() == files | {"tensorboard", "samples", "checkpoints"}
    assert names("checkpoints") == {"latest", "step_00000004", "step_00000007", "step_00000008"}
    assert names("samples") == {"step_00000008.png", "step_00000008_path.png"}
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000008\n"
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["torch"], environment["processes"]) == (torch.__version__, 2)
    line = launch.log()[0]
    for key in ("bits_per_dim", "gradient_norm", "lr", "images_per_second", "data_wait", "memory_gib", "integrand/0"):
        assert f"train/{key}" in line
    assert any("test/bits_per_dim" in line for line in launch.log())
