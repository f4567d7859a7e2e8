import copy
import functools
import subprocess
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, environment
from models import DIGITS
from torch import nn

from fdtrain import distributed
from fdtrain.capacity.layout import run_layout
from fdtrain.config import TrainingConfig
from fdtrain.data.split import Split
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.evaluation.samples import Sampler
from fdtrain.networks.model import Model
from fdtrain.training.compilation import as_compiled, compile_networks, worthwhile
from fdtrain.training.hardware import exact_float32

CPU = torch.device("cpu")
TRAINING = TrainingConfig(steps=1, global_batch=4, lanes=2, micro_batch=2, precision="fp32", compile=True)
LAYOUT = run_layout(TRAINING, 1)


def compiled(model, shown, said=None) -> bool:
    return compile_networks(model, shown, TRAINING, LAYOUT, 10**9, CPU, ([] if said is None else said).append)


@pytest.fixture
def backend(monkeypatch):
    """Compile by another back end than the C++ one, which takes half a minute, and in a process group of none."""
    original = nn.Module.compile
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x)

    def choose(name):
        monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(original, backend=name))

    yield choose
    torch.compiler.reset()


def field_and_gradients(model, images=2):
    torch.manual_seed(0)
    x, t = torch.randn(images, 1, 8, 8), torch.linspace(0, 1, images, dtype=torch.float64)
    label = torch.arange(images) if model.network.embed_label is not None else None
    F = model(x, t, label)
    return F, torch.autograd.grad((F - x).square().sum(), list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize(("checkpointing", "labelled"), [(False, False), (True, True)])
def test_compiled_is_what_eager_is(backend, checkpointing, labelled):
    backend("aot_eager")
    spec = replace(DIGITS, classes=list("0123456789") if labelled else [])
    model = Model(spec, checkpointing)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    names = list(model.state_dict())
    average = copy.deepcopy(model).eval().requires_grad_(False)
    expected = field_and_gradients(model)
    assert compiled(model, average)
    assert list(model.state_dict()) == names
    assert all(weight.grad is None for weight in model.parameters())
    with torch._dynamo.config.patch(error_on_recompile=True):
        F, gradients = field_and_gradients(model)
    torch.testing.assert_close(F, expected[0])
    for a, b in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(a, b)
    assert copy.deepcopy(model).network._compiled_call_impl is None


def test_evaluation_and_sampling_run_what_was_compiled_for_them(monkeypatch, digits):
    """In passes of the training's size; the rest of the images without, as a compilation of their own would be."""
    calls, original = [], nn.Module.compile

    def counting(graph, inputs):
        def run(*inputs):
            calls.append(len(inputs))
            return graph(*inputs)

        return run

    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x)
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(original, backend=counting))
    split, shown = Split(str(digits), "test"), Model(DIGITS).eval().requires_grad_(False)
    assert compiled(Model(DIGITS), shown)
    calls.clear()
    with as_compiled(shown), exact_float32():
        Likelihood(shown, split, batch=2).elbo(range(5), draws=1)
        assert len(calls) == 2
        Sampler("ode1", (1.0, 0.5, 0.0), 2).paths(shown, range(3), batch=2)
        assert len(calls) == 4
    torch.compiler.reset()


def test_where_one_process_fails_none_is_compiled(backend, monkeypatch):
    backend("eager")
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x + 1)
    model, said = Model(DIGITS), []
    assert not compiled(model, Model(DIGITS), said)
    assert said[-1].endswith("the network is not compiled: failed on 1 of 1 processes")
    assert model.network._compiled_call_impl is None


def test_a_pass_that_does_not_fit_is_no_failure_of_the_compiler(backend):
    def full(graph, inputs):
        def run(*inputs):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        return run

    backend(full)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(Model(DIGITS), Model(DIGITS))


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({"steps": 1000}, "cuda", False),
        ({"steps": 1000, "compile": True}, "cpu", True),
        ({"steps": 10**6}, "cuda", True),
        ({"steps": 10**6, "compile": False}, "cuda", False),
        ({"steps": 10**6}, "cpu", False),
    ],
)
def test_where_it_pays(settings, device, expected):
    training = TrainingConfig(global_batch=128, **settings)
    assert worthwhile(training, run_layout(training, 1), 10**9, torch.device(device)) is expected
    layout = run_layout(training.model_copy(update={"zero_stage": 3}), 1)
    assert worthwhile(training, layout, 10**9, torch.device(device)) is False


def test_a_run_without_a_compiler_goes_on(launch):
    command = launch.command("training.compile=true", "training.steps=2", processes=0)
    variables = {**environment(), "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(launch.folder)}
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "warning: torch.compile failed, so the network is not compiled: " in run.stderr
    assert "x cpu, fp32, ZeRO 0" in run.stderr
    assert launch.losses().keys() == {1, 2}
