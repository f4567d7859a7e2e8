import re
from functools import partial

import pytest
from conftest import ROOT
from models import DIGITS

from fdtrain.capacity import estimate
from fdtrain.capacity.cost import Flops
from fdtrain.capacity.estimate import Forecast, state_memory
from fdtrain.config import Config

PARAMETERS = 1000


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser", "average"),
    [
        (0, 4000, 4000, 8000, 1000),
        (1, 4000, 4000, 3000, 1000),
        (2, 4000, 1000, 3000, 1000),
        (3, 1000, 1000, 3000, 1000),
    ],
)
def test_state_of_a_rank_of_four(stage, weights, gradients, optimiser, average):
    memory = state_memory(PARAMETERS, stage, 4)
    assert memory == (weights, gradients, optimiser, average)
    assert sum(state_memory(PARAMETERS, stage, 4, averages=3)) == sum(memory) + 2 * average
    assert sum(memory) - sum(state_memory(PARAMETERS, stage, 4, muons=800)) == (800 if stage else 3200)


def test_time_of_a_run(monkeypatch):
    settings = {"name": "x", "data": {"path": "digits"}, "training": {"steps": 36_000, "global_batch": 64}}
    config = Config.model_validate(settings)
    # 64 TFLOP a step at 0.5 x 64 TFLOP/s: two seconds.
    monkeypatch.setattr(estimate, "flops", lambda spec: Flops(forward=4 * 10**11, backward=6 * 10**11))
    alone, shared = (Forecast(config, DIGITS, devices, tflops=64, utilisation=0.5) for devices in (1, 8))
    assert alone.images == 64 * 36_000
    assert alone.device_hours == shared.device_hours == pytest.approx(20)
    again = Config.model_validate(settings | {"network": {"checkpointing": True}})
    assert Forecast(again, DIGITS, 1, 64, 0.5).device_hours == pytest.approx(28)


@pytest.fixture
def plan(command):
    return partial(command, "plan", ROOT / "configs" / "digits.yaml")


def test_the_tool_needs_no_data(plan):
    out = plan("--for", "cuda:2", "--set", "training.zero_stage=2")
    for part in ("ddpmpp", "images (1, 8, 8) of 17 levels", "137 epochs", "GPU hours at 35% of 989", "on 2 GPUs"):
        assert part in out
    assert "as configured" in next(line for line in out.splitlines() if line.startswith("  2 "))
    out = plan("--for", "cpu", "--tflops", "0.5")
    assert re.search(r"^time +\d.* (seconds|minutes) at 35% of 0.5 TFLOP/s$", out, re.MULTILINE)
    assert "128 images in a pass" in out
    assert "GPU" not in out
    assert "(3, 64, 64) of 256" in plan("--dataset", "celeba64")
    images = ["--size", "16", "--channels", "1", "--levels", "4", "--classes", "0"]
    assert "(1, 16, 16) of 4" in plan("--set", "data.path=elsewhere", *images)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--utilisation", "1.5"], "--utilisation 1.5"),
        (["--tflops", "0"], "--tflops 0.0"),
        (["--for", "cuda:0"], "'cuda:0': give cpu, cuda (one GPU), or cuda:N"),
        (["--for", "gpu"], "'gpu': give cpu"),
        (["--for", "cuda:3"], "cannot be shared by 3 processes"),
        (["--levels", "1"], "--levels 1: give 2 to 256"),
        (["--set", "data.path=elsewhere"], "elsewhere is no packed data set, and 'elsewhere' none that was published"),
        (["--channels", "9"], "--channels 9"),
    ],
)
def test_mistakes(plan, arguments, part):
    message = plan(*arguments, rc=2)
    assert part in message
    assert "Traceback" not in message
