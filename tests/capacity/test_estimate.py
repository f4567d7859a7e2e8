import re
import subprocess
import sys

import pytest
from conftest import ROOT, environment

from fdtrain.capacity.cost import Flops
from fdtrain.capacity.estimate import state_memory, work
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
    assert (memory.weights, memory.gradients, memory.optimiser, memory.average) == (
        weights,
        gradients,
        optimiser,
        average,
    )
    assert memory.total == weights + gradients + optimiser + average
    assert state_memory(PARAMETERS, stage, 4, averages=3).total == memory.total + 2 * average
    spared = memory.total - state_memory(PARAMETERS, stage, 4, muons=800).total
    assert spared == (800 if stage else 3200)


def test_time_of_a_run():
    settings = {"name": "x", "data": {"path": "digits"}, "training": {"steps": 36_000, "global_batch": 64}}
    config = Config.model_validate(settings)
    # 64 TFLOP a step at 0.5 x 64 TFLOP/s: two seconds.
    counted = Flops(forward=4 * 10**11, backward=6 * 10**11)
    total = work(config, counted, PARAMETERS, gpus=1, tflops=64, utilisation=0.5)
    assert total.images == 64 * 36_000
    assert total.gpu_hours == pytest.approx(20)
    assert total.days == pytest.approx(20 / 24)
    again = Config.model_validate(settings | {"network": {"checkpointing": True}})
    assert work(again, counted, PARAMETERS, 1, 64, 0.5).gpu_hours == pytest.approx(28)


def test_the_time_of_a_run_is_its_steps_with_their_waiting():
    """Of 64 devices, where waiting shows: the line of the run and that of the table are one number."""
    settings = {"name": "x", "data": {"path": "digits"}, "training": {"steps": 36_000, "global_batch": 64}}
    total = work(Config.model_validate(settings), Flops(10**11, 2 * 10**11), 10**8, 64, 989, 0.35)
    assert total.step.exposed > 0.1 * total.step.alone
    assert total.days == pytest.approx(36_000 * total.step.seconds / 86_400)
    out = subprocess.run(
        [sys.executable, "tools/plan.py", "configs/imagenet64_dit.yaml", "--gpus", "64"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    days = float(re.search(r"([\d.]+) days on 64 GPUs", out)[1])
    steps = int(re.search(r"run +([\d,]+) steps", out)[1].replace(",", ""))
    milliseconds = float(re.search(r"^ +64 +([\d.]+) .*this run$", out, re.MULTILINE)[1])
    assert days == pytest.approx(steps * milliseconds / 1e3 / 86_400, abs=0.006)


def plan(*arguments, rc=0):
    command = [sys.executable, "tools/plan.py", "configs/digits.yaml", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == rc, result.stdout + result.stderr
    return result.stderr if rc else result.stdout


def test_the_tool_needs_no_data():
    out = plan("--gpus", "2", "--set", "training.zero_stage=2")
    for part in ("ddpmpp", "images (1, 8, 8) of 17 levels", "137 epochs", "GPU hours at 35% of 989", "on 2 GPUs"):
        assert part in out
    assert "as configured" in next(line for line in out.splitlines() if line.startswith("  2 "))
    assert "weak scaling with 64 images per GPU, ZeRO 2, 350 GB/s in a node and 45 per GPU" in out
    assert out.index("\n     1 ") < out.index("\n  4096 ")
    assert "(3, 64, 64) of 256" in plan("--dataset", "celeba64")
    images = ["--size", "16", "--channels", "1", "--levels", "4", "--classes", "0"]
    assert "(1, 16, 16) of 4" in plan("--set", "data.path=elsewhere", *images)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--utilisation", "1.5"], "--utilisation 1.5"),
        (["--tflops", "0"], "--tflops 0.0"),
        (["--between", "-1"], "--between -1.0"),
        (["--gpus", "0"], "--gpus 0: give 1 to"),
        (["--gpus", "3"], "cannot be shared by 3 processes"),
        (["--levels", "1"], "--levels 1: give 2 to 256"),
        (["--set", "data.path=elsewhere"], "elsewhere is no packed data set, and 'elsewhere' none that was published"),
        (["--channels", "9"], "--channels 9"),
    ],
)
def test_mistakes(arguments, part):
    message = plan(*arguments, rc=2)
    assert part in message
    assert "Traceback" not in message
