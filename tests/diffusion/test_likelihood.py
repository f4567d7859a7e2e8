import math

import pytest
import torch
from densities import gaussian, three_modes

from fdtrain.diffusion.likelihood import (
    dormand_prince,
    estimate,
    exact_trace,
    hutchinson_trace,
    ode_nll,
)


@pytest.mark.parametrize("data", [gaussian(d=3), three_modes(2)], ids=["gaussian", "mixture"])
def test_ode_gives_the_exact_likelihood(data):
    x0 = data.sample(50, torch.Generator().manual_seed(0))
    result = ode_nll(data.field, x0, exact_trace, tolerance=1e-7)
    torch.testing.assert_close(result.nll, data.nll(x0), rtol=0, atol=1e-4)
    assert result.nfe > 20
    coarse = ode_nll(data.field, x0, exact_trace, tolerance=1e-4)
    assert coarse.nfe < result.nfe
    torch.testing.assert_close(coarse.nll, data.nll(x0), rtol=0, atol=2e-3 * x0.shape[1])


def test_hutchinson_is_unbiased():
    data = three_modes(4)
    generator = torch.Generator().manual_seed(0)
    x0 = data.sample(1, generator).repeat(1000, 1)
    probe = (torch.randint(0, 2, x0.shape, generator=generator) * 2 - 1).double()
    estimates = ode_nll(data.field, x0, hutchinson_trace(probe), tolerance=1e-5).nll
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - data.nll(x0)[0]) < 3 * error + 1e-4


def test_traces_agree_on_a_diagonal_map():
    x = torch.randn(3, 1, 2, 2, requires_grad=True)
    probe = torch.ones_like(x)
    f = x**3
    expected = (3 * x**2).flatten(1).sum(1)
    torch.testing.assert_close(exact_trace(f, x), expected.detach())
    torch.testing.assert_close(hutchinson_trace(probe)(f, x), expected.detach())


def test_integrator_reaches_its_tolerance():
    y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    end, nfe = dormand_prince(lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1), y, 0.0, math.pi / 2, 1e-9)
    torch.testing.assert_close(end, torch.tensor([[0.0, -1.0]], dtype=torch.float64), rtol=0, atol=1e-7)
    assert nfe < 500


def test_integrator_says_when_it_cannot_go_on():
    y = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(FloatingPointError):
        dormand_prince(lambda t, y: y * y * 10, y, 0.0, 1.0, 1e-6)  # blows up at t = 0.1


def test_standard_errors():
    generator = torch.Generator().manual_seed(0)
    images, draws = 200, 50
    values = 3 + torch.randn(images, 1, generator=generator) + 2 * torch.randn(images, draws, generator=generator)
    result = estimate(values)
    assert result.mean == pytest.approx(3, abs=0.3)
    assert result.error_draws == pytest.approx(2 / math.sqrt(images * draws), rel=0.1)
    assert result.error_images == pytest.approx(math.sqrt((1 + 4 / draws) / images), rel=0.15)
