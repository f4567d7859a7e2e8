"""The measures of noise against what they are of draws that are known."""

import math

import pytest
import torch
from models import DIGITS

from fdtrain.comparison import noise
from fdtrain.data.split import Split
from fdtrain.diffusion.clocks import time_density
from fdtrain.diffusion.interval import CLOSED
from fdtrain.diffusion.objective import normal_nll, quantise
from fdtrain.networks.model import Model
from fdtrain.training.batch_noise import BatchNoise


def batches(digits, sampling="stratified", lanes=4, model=None):
    model = model or Model(DIGITS).eval().requires_grad_(False)
    own = BatchNoise(3, 32, 32 // lanes, sampling, time_density("asinh", DIGITS.scale, CLOSED), DIGITS.bound)
    return noise.Batches.of(model, Split(digits, "train"), own)


def test_noise_of_gradients_that_are_known():
    """Gaussian gradients in 50 dimensions of standard deviation 2 around a mean of norm 3."""
    count, dims = 4000, 50
    own = torch.Generator().manual_seed(0)
    mean = torch.zeros(dims, dtype=torch.float64)
    mean[0] = 3.0
    g = mean + 2 * torch.randn(count, dims, generator=own, dtype=torch.float64)
    found = noise.covariance_trace(g.sum(0).square().sum().item(), g.square().sum().item(), count)
    assert found["noise"] ** 2 == pytest.approx(4 * dims, rel=0.02)
    assert found["noise_scale"] == pytest.approx(4 * dims / 9, rel=0.05)
    assert found["norm"] ** 2 == pytest.approx(4 * dims + 9, rel=0.02)


def test_no_scale_where_the_mean_gradient_is_not_to_be_told_from_zero():
    assert noise.covariance_trace(2.0, 2.0, 2)["noise_scale"] is None


def test_the_bound_of_a_network_that_is_zero_varies_by_the_images_alone(digits):
    """F = 0 gives -log N(x0; 0, I), whose mean over each batch is known."""
    model = Model(DIGITS).eval()
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    own = batches(digits, model=model.requires_grad_(False))
    means = []
    for number in range(6):
        loss, t = own.loss(number)
        chosen = own.chosen(number)
        batch = own.noise.batch(number, range(4), own.pixels[chosen], own.labels[chosen])
        assert (quantise(batch.x0, DIGITS.levels) == own.pixels[chosen]).all()
        expected = normal_nll(batch.x0)
        torch.testing.assert_close(loss.nelbo, expected)
        assert len(set((own.noise.density.cdf(t) * 32).long().tolist())) == 32
        means.append(expected.double().mean().item() / (DIGITS.dims * math.log(2)))
    found = noise.bound(own, 6, 4)
    assert found["variance"] == pytest.approx(torch.tensor(means).var().item(), rel=1e-4)
    assert len(found["t_edges"]) == 5
    assert len(found["by_time"]) == 4


def test_the_gradients_noise_is_that_of_the_batches_gradients(digits):
    own = batches(digits)
    found = noise.gradient(own, 3)
    model = own.model.requires_grad_(True)
    gradients = []
    for number in range(3):
        loss, _ = own.loss(number)
        parts = torch.autograd.grad(loss.train.mean() / DIGITS.dims, list(model.parameters()), allow_unused=True)
        gradients.append(torch.cat([p.flatten() for p in parts if p is not None]).double())
    g = torch.stack(gradients)
    assert found["noise"] == pytest.approx(g.var(0).sum().sqrt().item(), rel=1e-5)
    assert found["norm"] == pytest.approx(g.square().sum(1).mean().sqrt().item(), rel=1e-5)


def test_a_batch_has_no_image_twice_while_there_are_enough(digits):
    own = batches(digits)
    assert len(set(own.chosen(0).tolist())) == 32
    assert own.chosen(0).tolist() != own.chosen(1).tolist()
