"""Mathematics places its tensors where its inputs are: on a fake GPU where torch is built for CUDA, elsewhere on the
device ``meta``. Neither computes; both refuse to mix devices, or to give a value to the host."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from models import DIGITS
from torch._subclasses.fake_tensor import FakeTensorMode

from fdtrain.diffusion.solvers import GRID, SOLVERS, sample, time_grid
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.networks.model import Model

DEVICE = torch.device("cuda" if torch.backends.cuda.is_built() else "meta")
CLASSES = list("0123456789")
NETWORKS = [
    replace(DIGITS, classes=CLASSES, null_class=True),
    replace(DIGITS, network="vdm", network_options={"channels": 8, "blocks": 1, "fourier_features": 4}),
    replace(DIGITS, network="dit", network_options={"size": "S", "patch": 2}, classes=CLASSES),
    replace(DIGITS, interval=[0.01, 0.99], decoder="discrete", predictor="eps"),
]
pytestmark = pytest.mark.fake_cuda


@pytest.fixture
def there():
    with FakeTensorMode() if DEVICE.type == "cuda" else nullcontext():
        yield


@pytest.mark.parametrize("spec", NETWORKS, ids=["ddpmpp", "vdm", "dit", "truncated"])
def test_losses_and_gradients(there, spec):
    model = Model(spec).to(DEVICE)
    x0, eps = torch.empty(4, *spec.shape, device=DEVICE), torch.empty(4, *spec.shape, device=DEVICE)
    t, label = torch.empty(4, dtype=torch.float64, device=DEVICE), torch.empty(4, dtype=torch.int64, device=DEVICE)
    field = model.field(label if spec.classes else None)
    for weighting in WEIGHTINGS.values():
        loss = spec.bound.loss(field, x0, eps, t, t, weighting)
        assert loss.train.device.type == loss.nelbo.device.type == DEVICE.type
        gradients = torch.autograd.grad(loss.train.mean(), list(model.parameters()), allow_unused=True)
        assert {g.device.type for g in gradients if g is not None} == {DEVICE.type}


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers(there, solver):
    model = Model(NETWORKS[0]).to(DEVICE).requires_grad_(False)
    label = torch.empty(4, dtype=torch.int64, device=DEVICE)
    x = torch.empty(4, *DIGITS.shape, device=DEVICE)
    found = sample(model.field(label, 2.0), x, time_grid(GRID, 6), solver, lambda step: torch.empty_like(x))
    assert (found.device.type, found.shape) == (DEVICE.type, x.shape)
