import math

import pytest
import torch
from densities import gaussian, three_modes

from fdtrain.diffusion.clocks import UNIFORM, Asinh
from fdtrain.diffusion.objective import (
    Bound,
    bits_per_dim,
    dequantise,
    integrand,
    normal_nll,
    quantise,
)

N = 400_000


@pytest.mark.parametrize("density", [UNIFORM, Asinh(0.03)], ids=["uniform", "asinh"])
@pytest.mark.parametrize("data", [gaussian(d=3), three_modes(2)], ids=["gaussian", "mixture"])
def test_bound_equals_the_entropy_for_the_exact_field(data, density):
    """method.md, section 3: for F* the mean NELBO is the entropy, within the standard error."""
    generator = torch.Generator().manual_seed(0)
    x0 = data.sample(N, generator)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    u = (torch.arange(N, dtype=torch.float64) + torch.rand(N, dtype=torch.float64, generator=generator)) / N
    t = density.quantile(u)
    # Against -log p of the same draws: the difference has the smaller error.
    difference = Bound().nelbo(data.field, x0, eps, t, density.pdf(t)) - data.nll(x0)
    error = difference.std().item() / math.sqrt(N)
    assert error < 0.02
    assert abs(difference.mean().item()) < 3 * error


def test_a_wrong_field_costs_nats():
    """The bound is an upper one: a perturbed field is worse by the integral of t |dF|^2."""
    data, generator = gaussian(), torch.Generator().manual_seed(0)
    x0 = data.sample(N, generator)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    t = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    values = [
        Bound().nelbo(lambda x, t, c=c: data.field(x, t) + c, x0, eps, t, torch.ones_like(t)).mean().item()
        for c in (0.0, 0.4)
    ]
    assert values[1] - values[0] == pytest.approx(0.5 * 0.4**2, abs=0.01)


def test_no_field_is_the_standard_normal():
    x0, eps = torch.randn(2, 8, 3, 4, 4)
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    value = Bound().nelbo(lambda x, t: torch.zeros_like(x), x0, eps, t, torch.ones_like(t))
    expected = -torch.distributions.Normal(0, 1).log_prob(x0).flatten(1).sum(1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(normal_nll(x0), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_at_exactly_zero_and_one(dtype):
    x0, eps = torch.randn(2, 2, 3, 4, 4, dtype=dtype)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    F = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    value = Bound().correction(lambda x, t: F, x0, eps, t, torch.ones_like(t))
    value.sum().backward()
    # t = 0: v = eps; the value is -2 eps . F. t = 1: v = -x0; |F|^2 + 2 x0 . F.
    expected = torch.stack([-2 * (eps[0] * F[0]).sum(), (F[1] ** 2).sum() + 2 * (x0[1] * F[1]).sum()])
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(F.grad[0], -2 * eps[0])
    torch.testing.assert_close(F.grad[1], 2 * (F[1].detach() + x0[1]))


def test_gradient_is_that_of_the_weighted_error():
    """Same gradient as |v - t F|^2 / t, whose value diverges at 0."""
    t = torch.tensor([1e-4, 0.3, 1.0], dtype=torch.float64)
    v = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    F = torch.randn(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = t.view(-1, 1, 1, 1)
    (ours,) = torch.autograd.grad(integrand(F, v, t).sum(), F)
    (usual,) = torch.autograd.grad(((v - weight * F) ** 2 / weight).sum(), F)
    torch.testing.assert_close(ours, usual)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_quantisation_inverts_dequantisation(levels):
    image = torch.arange(levels, dtype=torch.uint8).view(1, 1, 1, -1)
    for u in (0.01, 0.5, 0.99):
        x = dequantise(image, torch.full(image.shape, u), levels)
        assert x.min() > -1
        assert x.max() < 1
        assert torch.equal(quantise(x, levels), image)


def test_bits_per_dim():
    """An image uniform over its levels: log2(levels) bits, whatever the dequantised density's nats."""
    for levels in (17, 256):
        nats = 10 * math.log(2)  # density 1/2 in each of ten dimensions
        assert bits_per_dim(nats, 10, levels) == pytest.approx(math.log2(levels))
    assert bits_per_dim(0.0, 3, 256) == 7
