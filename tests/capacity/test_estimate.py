"""What a run will take, against counts by hand, a paper's, and what autograd saves."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT
from models import DIGITS

from fdtrain.capacity.estimate import activations, flops, state_memory
from fdtrain.networks.model import Model

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


@pytest.fixture
def plan(command):
    return partial(command, "plan", ROOT / "configs" / "digits.yaml")


def test_time_of_a_run(plan, monkeypatch):
    """64 TFLOP a step at 0.5 x 64 TFLOP/s: two seconds."""
    monkeypatch.setattr("fdtrain.commands.plan.flops", lambda spec, checkpointing: 10**12)
    settings = "training.steps=36000", "training.global_batch=64"
    out = plan("--for", "cuda:8", "--tflops", "64", "--utilisation", "0.5", "--set", *settings)
    assert "20 GPU hours at 50% of 64 TFLOP/s: 2.5 hours on 8 GPUs" in out


def test_the_tool_needs_no_data(plan):
    out = plan("--for", "cuda:2", "--set", "training.zero_stage=2")
    for part in ("ddpmpp", "images (1, 8, 8) of 17 levels", "137 epochs", "GPU hours at 35% of 989", "on 2 GPUs"):
        assert part in out
    assert "as configured" in next(line for line in out.splitlines() if line.startswith("  2 "))
    out = plan("--for", "cpu", "--tflops", "0.5")
    assert re.search(r"^time +\d.* (seconds|minutes) at 35% of 0.5 TFLOP/s$", out, re.MULTILINE)
    assert "128 images in a pass" in out
    assert "GPU" not in out
    assert "(3, 64, 64) of 256" in plan("--set", "data.path=celeba64")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--utilisation", "1.5"], "--utilisation 1.5"),
        (["--tflops", "0"], "--tflops 0.0"),
        (["--for", "cuda:0"], "'cuda:0': give cpu, cuda (one GPU), or cuda:N"),
        (["--for", "cuda:3"], "cannot be shared by 3 processes"),
        (["--set", "data.path=elsewhere"], "elsewhere is no packed data set, and 'elsewhere' none that was published"),
    ],
)
def test_mistakes(plan, arguments, part):
    message = plan(*arguments, rc=2)
    assert part in message
    assert "Traceback" not in message


OPTIONS = {"channels": 8, "blocks": 1, "fourier_features": 2}
SPEC = replace(DIGITS, network="vdm", network_options=OPTIONS, predictor="bounded", scale=0.1)


def test_flops_of_a_known_network():
    """vdm of one block each way, by hand: two operations per weight of a product, and the attention's two products."""
    n, pixels, features = 8, 64, 5
    embedding = n * 4 * n + (4 * n) ** 2
    convolutions = 9 * (features * n + 3 * 2 * n * n + 2 * (2 * n * n + n * n) + n)
    others = 2 * 2 * n * n + 4 * n * n + 2 * pixels * n  # shortcuts, attention's layers, attention
    conditions = 5 * 4 * n * n
    forward = 2 * (embedding + conditions + pixels * (convolutions + others))
    # Backward is twice that, but nothing is asked of the first layer about the images, nor of the time's.
    assert flops(SPEC) == 3 * forward - 2 * pixels * 9 * features * n - 2 * n * 4 * n
    assert flops(SPEC, checkpointing=True) - flops(SPEC) == forward


def test_the_paper_s_flops_of_dit():
    """DiT-XL/2 on 32x32x4 latents takes 118.6 G multiplications forward (table 4); pixels have three channels."""
    spec = replace(SPEC, network="dit", network_options={"size": "XL"}, channels=3, size=32, levels=256)
    assert flops(spec) / 6 == pytest.approx(118.6e9, rel=2e-3)


def saved_for_real(spec, images):
    model, sizes = Model(spec), {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def pack(x):
        if x.untyped_storage()._cdata not in weights:
            sizes[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(torch.randn(images, *spec.shape), torch.rand(images, dtype=torch.float64))
    return sum(storage.nbytes() for storage in sizes.values())


def test_activations_are_those_that_autograd_saves():
    assert activations(SPEC, 3, "fp32") == saved_for_real(SPEC, 3)


@pytest.mark.parametrize("network", [{}, {"network": "ddpmpp", "network_options": {"channels": 16}}])
def test_precision_and_checkpointing_keep_less(network):
    spec = replace(SPEC, size=16, **network)
    full = activations(spec, 64, "fp32")
    assert 0.5 * full < activations(spec, 64, "bf16") < full
    assert activations(spec, 64, "fp32", checkpointing=True) < 0.5 * full
