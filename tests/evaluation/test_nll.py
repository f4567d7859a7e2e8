import dataclasses
import math

import pytest
import torch
from models import DIGITS
from torch import nn

from fdtrain.data.split import Split
from fdtrain.diffusion.objective import bits_per_dim, dequantise, normal_nll
from fdtrain.diffusion.process import alpha, per_image
from fdtrain.errors import UserError
from fdtrain.evaluation.likelihood import Likelihood, _draws, check_same_images, ode_bits
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


def test_bound_of_an_exact_model_is_its_likelihood(gaussian_model, split):
    values = Likelihood(gaussian_model, split, dtype=torch.float64).elbo(range(100), 40)
    assert values.shape == (100, 40)
    uniform = torch.stack([torch.from_numpy(_draws(DIGITS, 40, 0, i)[1]) for i in range(100)]).double()
    expected = torch.stack([exact_bits(split, range(100), uniform[:, k]) for k in range(40)], 1)
    difference = values.mean(1) - expected.mean(1)
    error = difference.std().item() / 10
    assert error < 0.05
    assert abs(difference.mean().item()) < 3 * error


def test_ode_of_an_exact_model_is_its_likelihood(gaussian_model, split):
    likelihood = Likelihood(gaussian_model, split, dtype=torch.float64)
    nats, nfe = likelihood.ode(range(20), tolerance=1e-5)
    uniform = likelihood._uniform(range(20), 0)
    values = ode_bits(nats, DIGITS)[:, 0]
    torch.testing.assert_close(values, exact_bits(split, range(20), uniform), rtol=0, atol=1e-3)
    assert ((nfe > 10) & (nfe < 1000)).all()


def discrete_bits(split, images):
    """Bits/dim of the images themselves: each pixel's probability is the Gaussian's over its cell."""
    edges = dequantise(split.batch(images)[0].double()[..., None], torch.tensor([0.0, 1.0]).double(), 17)
    low, high = torch.special.ndtr((edges + 0.4) / math.sqrt(0.3)).unbind(-1)
    return -(high - low).log2().flatten(1).mean(1)


def test_importance_weighted_bound_of_an_exact_model(gaussian_model, split):
    images = range(60)
    values = Likelihood(gaussian_model, split, dtype=torch.float64).elbo_importance(images, 64, 6)
    assert values.shape == (60, 2)
    for value in values.T:
        gap = value - discrete_bits(split, images)
        error = gap.std().item() / math.sqrt(60)
        assert error < 0.03
        assert -3 * error < gap.mean() < 0.03 + 3 * error


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "hutchinson"])
def test_importance_weighted_ode_of_an_exact_model(gaussian_model, split, exact):
    images = range(10)
    likelihood = Likelihood(gaussian_model, split, dtype=torch.float64)
    nats, _ = likelihood.ode(images, 1e-4, 8, exact)
    assert nats.shape == (10, 8, 1 if exact else 2)
    one, _ = likelihood.ode(images, 1e-4, 1, exact)
    torch.testing.assert_close(nats[:, 0, 0], one[:, 0, 0], rtol=0, atol=0.05)
    gap = ode_bits(nats, DIGITS)[:, 0] - discrete_bits(split, images)
    # This field is linear and isotropic: one Rademacher probe has its divergence exactly.
    assert gap.mean() > -3 * gap.std() / math.sqrt(10)
    assert gap.mean() < bits_per_dim(nats, 64, 17).mean() - discrete_bits(split, images).mean()


def test_the_integral_by_time_adds_up_to_the_bound(gaussian_model, split):
    likelihood = Likelihood(gaussian_model, split, dtype=torch.float64)
    strata, whole = likelihood.correction_by_stratum(range(10), 16), likelihood.elbo(range(10), 16)
    uniform = torch.stack([torch.from_numpy(_draws(DIGITS, 16, 0, i)[1]) for i in range(10)]).double()
    normal = normal_nll(dequantise(split.batch(range(10))[0][:, None], uniform, 17).flatten(0, 1)).view(10, 16)
    expected = whole.mean(1) - bits_per_dim(normal.mean(1), 64, 17)
    torch.testing.assert_close(strata.mean(1), expected)


def test_a_model_that_diverged_is_reported(gaussian_model, split):
    nn.init.constant_(gaussian_model.network.mean, math.nan)
    with pytest.raises(UserError, match="not finite at image 3: its weights are broken"):
        Likelihood(gaussian_model, split, dtype=torch.float64).elbo(range(3, 5), 2)
    with pytest.raises(UserError, match=r"images 3 to 4: the ODE's state is not finite"):
        Likelihood(gaussian_model, split, dtype=torch.float64).ode(range(3, 5))


def test_values_do_not_depend_on_batch_or_share(gaussian_model, split):
    large, small = (Likelihood(gaussian_model, split, batch=batch, dtype=torch.float64) for batch in (90, 7))
    parts = [small.elbo(part, 3) for part in (range(11), range(11, 30))]
    torch.testing.assert_close(large.elbo(range(30), 3), torch.cat(parts))
    torch.testing.assert_close(small.elbo_importance(range(6), 4, 2)[2:], large.elbo_importance(range(2, 6), 4, 2))


def test_another_data_set_is_refused(split):
    with pytest.raises(UserError, match="256 levels"):
        check_same_images(dataclasses.replace(DIGITS, levels=256), split)
    check_same_images(DIGITS, split)
