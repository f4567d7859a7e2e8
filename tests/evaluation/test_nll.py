import dataclasses
import math

import pytest
import torch
from models import DIGITS
from torch import nn

from fdtrain.data.split import Split
from fdtrain.diffusion.objective import dequantise, normal_nll
from fdtrain.diffusion.process import alpha, per_image
from fdtrain.diffusion.time_sampling import Asinh, Uniform
from fdtrain.errors import UserError
from fdtrain.evaluation import nll
from fdtrain.networks.model import Model


class GaussianNetwork(nn.Module):
    """The exact network output for data N(m, v I) under the plain predictor: F*."""

    def __init__(self, mean=-0.4, variance=0.3):
        super().__init__()
        self.mean, self.variance = nn.Parameter(torch.tensor(mean)), variance

    def forward(self, x, t, label=None):
        a, t = per_image(alpha(t), x), per_image(t, x)
        return (a * (1 - self.variance) * x - self.mean) / (a * a * self.variance + t * t)


@pytest.fixture
def gaussian_model():
    model = Model(DIGITS)
    model.network = GaussianNetwork()
    return model.double().requires_grad_(False)


@pytest.fixture
def split(digits):
    return Split(digits, "test")


def exact_bits(split, images, uniform):
    """Bits/dim of the dequantised images under the Gaussian."""
    x = dequantise(split.batch(images)[0], uniform, 17).double()
    nats = normal_nll((x + 0.4) / math.sqrt(0.3)) + 32 * math.log(0.3)
    return nats / (64 * math.log(2)) + math.log2(17 / 2)


@pytest.mark.parametrize("density", [Uniform(), Asinh(0.06)], ids=str)
def test_bound_of_an_exact_model_is_its_likelihood(gaussian_model, split, density):
    values = nll.elbo(gaussian_model, DIGITS, split, range(100), density, draws=40, dtype=torch.float64)
    assert values.shape == (100, 40)
    uniform = torch.stack([torch.from_numpy(nll._draws(DIGITS, 40, 0, i)[1]) for i in range(100)]).double()
    expected = torch.stack([exact_bits(split, range(100), uniform[:, k]) for k in range(40)], 1)
    difference = (values - expected).mean(1)
    error = difference.std().item() / 10
    assert error < 0.05
    assert abs(difference.mean().item()) < 3 * error


def test_ode_of_an_exact_model_is_its_likelihood(gaussian_model, split):
    values, nfe = nll.ode(gaussian_model, DIGITS, split, range(20), tolerance=1e-6, dtype=torch.float64)
    uniform = torch.stack([torch.from_numpy(nll._ode_draws(DIGITS, 0, i)[0]) for i in range(20)]).double()
    torch.testing.assert_close(values[:, 0], exact_bits(split, range(20), uniform), rtol=0, atol=1e-3)
    assert 10 < nfe < 1000


def test_values_do_not_depend_on_batch_or_share(gaussian_model, split):
    arguments = (gaussian_model, DIGITS, split)
    whole = nll.elbo(*arguments, range(30), Uniform(), draws=3, batch=90, dtype=torch.float64)
    parts = [
        nll.elbo(*arguments, part, Uniform(), draws=3, batch=7, dtype=torch.float64)
        for part in (range(11), range(11, 30))
    ]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_another_data_set_is_refused(split):
    with pytest.raises(UserError, match="256 levels"):
        nll.check_same_images(dataclasses.replace(DIGITS, levels=256), split)
    nll.check_same_images(DIGITS, split)


def test_every_image_is_evaluated_once(split):
    labels = torch.cat([split.batch(range(i, min(i + 7, 300)))[1] for i in range(0, 300, 7)])
    assert len(labels) == len(split) == 300
    assert torch.bincount(labels).min() > 15
