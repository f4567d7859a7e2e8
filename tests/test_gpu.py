"""What only a GPU can show: ``make gpu``, or ``python -m pytest -m gpu``."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT, environment
from models import DIGITS, filled

from fdtrain import distributed
from fdtrain.data.split import Split
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.evaluation.samples import Sampler
from fdtrain.randomness import Purpose, normal
from fdtrain.training import hardware
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.build import own_batches
from fdtrain.training.plan import prepare

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture
def train(launch):
    """A run of the small configuration in a process of its own, on ``cuda`` or ``cpu``; returns what it says."""

    def run(device, *settings, resume=False, script="fdtrain/main.py"):
        command = launch.command(*settings, processes=0, resume=resume)
        command[1] = script
        variables = {**environment(), "DS_ACCELERATOR": device}
        result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    return run


def test_draws_are_a_cpus(monkeypatch, launch):
    """Also while the host is many copies ahead."""
    counters = [(image, 3) for image in range(512)]
    on_gpu = [normal((3, 32, 32), GPU, seed, Purpose.SAMPLE, counters) for seed in range(20)]
    for seed, drawn in enumerate(on_gpu):
        assert torch.equal(drawn.cpu(), normal((3, 32, 32), CPU, seed, Purpose.SAMPLE, counters))
    plan = prepare(str(launch.config), ["training.steps=40"], resume=False)
    noise = BatchNoise.of(plan.config, plan.spec)
    moved = [[part.to(GPU) for part in passes] for passes in own_batches(plan, noise, 0)]
    monkeypatch.setattr(distributed, "on_gpu", lambda: False)
    for passes, expected in zip(moved, own_batches(plan, noise, 0), strict=True):
        for part, own in zip(passes, expected, strict=True):
            assert torch.equal(part.memory.cpu(), own.memory)


def test_training_is_a_cpus_to_rounding_and_moves_there(train, launch):
    train("cpu", "name=cpu")
    assert "1 x cuda" in train("cuda", "name=gpu")
    train("cpu", "name=moved", "training.steps=3", "checkpoint.every=3")
    train("cuda", "name=moved", resume=True)
    for name in ("gpu", "moved"):
        assert launch.losses(name) == pytest.approx(launch.losses("cpu"), rel=1e-4)


def test_compiled_at_bf16(train, launch):
    settings = ["training.precision=bf16", "training.compile=true", "monitor.sample_every=3", "monitor.sample_steps=3"]
    assert ", compiled, " in train("cuda", "name=bf16", *settings)
    train("cuda", "name=fp32")
    assert launch.losses("bf16") == pytest.approx(launch.losses("fp32"), rel=1e-2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_host_waits_for_nothing_of_a_step(train, stage):
    """Any wait ends the run there."""
    settings = ["ema.lengths=[0.1]", "ema.snapshot_every=100", "monitor.log_every=100"]
    train("cuda", *settings, f"training.zero_stage={stage}", script="tests/training/synchronising.py")


def test_samples_and_likelihoods_are_a_cpus_to_rounding(digits):
    found = []
    for device in (CPU, GPU):
        model, split = filled(DIGITS).to(device), Split(str(digits), "test")
        x = Sampler("sde", (1.0, 0.7, 0.3, 0.0), 3).solve(model, range(8), seed=3)
        found.append((x.cpu(), Likelihood(model, split).elbo(range(8), 4)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


def test_a_device_has_a_rate():
    """No card multiplies float32 as slowly as 1 TFLOP/s, nor has any 100,000."""
    for precision in ("fp32", "bf16"):
        assert 1e12 < hardware.matrix_rate(GPU, precision) < 1e17


def test_a_watchdog_of_nccl_that_has_noted_nothing():
    program = (
        "from fdtrain import distributed\n"
        "import torch\n"
        "torch.distributed.all_reduce(torch.ones(1, device=distributed.connect()))\n"
        "assert not distributed.failed_on_device()\n"
    )
    variables = environment() | {"DS_ACCELERATOR": "cuda"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, check=True, timeout=300)
