import math

import pytest
import torch
from densities import gaussian, three_modes

from fdtrain.diffusion.likelihood import (
    crossed_importance_bound,
    dormand_prince,
    estimate,
    exact_trace,
    hutchinson_trace,
    importance_bound,
    ode_nll,
)
from fdtrain.diffusion.objective import dequantise


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


def test_no_part_hides_behind_another():
    """One density beside a thousand pixels: in the mean over all columns its error would count for a thirtieth."""

    def derivative(t, y):
        return torch.cat([torch.zeros_like(y[:, 1:]), torch.full_like(y[:, :1], math.cos(40 * t) * 40)], 1)

    y = torch.zeros(1, 1001, dtype=torch.float64)
    errors, evaluations = [], []
    for parts in (None, [1000, 1]):
        end, nfe = dormand_prince(derivative, y, 0.0, math.pi, 1e-4, parts)
        errors.append(abs(end[0, -1].item()))
        evaluations.append(nfe)
    assert errors[1] < 2e-4 < errors[0]
    assert evaluations[0] < evaluations[1]


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


def test_errors_over_draws_do_not_count_what_differs_between_strata():
    generator = torch.Generator().manual_seed(0)
    values = torch.linspace(0, 30, 100) + torch.randn(200, 100, generator=generator)
    assert estimate(values).error_draws == pytest.approx(1 / math.sqrt(200 * 100), rel=0.1)


def test_several_probes_are_as_many_estimates():
    data, generator = three_modes(3), torch.Generator().manual_seed(0)
    x0 = data.sample(4, generator)
    a, b = ((torch.randint(0, 2, x0.shape, generator=generator) * 2 - 1).double() for _ in range(2))
    both = ode_nll(data.field, x0, hutchinson_trace(a, b), 1e-6, columns=2).nll
    for column, probe in enumerate((a, b)):
        alone = ode_nll(data.field, x0, hutchinson_trace(probe), 1e-6).nll
        torch.testing.assert_close(both[:, column], alone, rtol=0, atol=1e-4)


LEVELS = 4


@pytest.fixture(scope="module")
def cells():
    """Two-dimensional images of 4 levels: ``-log P`` by quadrature, and ``-log p`` at dequantised points by count K."""
    data, generator = three_modes(2), torch.Generator().manual_seed(1)
    images = torch.randint(0, LEVELS, (400, 2), generator=generator)
    middles = (torch.arange(80, dtype=torch.float64) + 0.5) / 80
    u = torch.cartesian_prod(middles, middles)
    truth = torch.stack([importance_bound(data.nll(dequantise(image, u, LEVELS))) for image in images])

    def nll(K):
        x = dequantise(images[:, None], torch.rand(400, K, 2, dtype=torch.float64, generator=generator), LEVELS)
        return data.nll(x.flatten(0, 1)).view(400, K)

    return truth, nll


def test_importance_bound_falls_to_the_discrete_likelihood(cells):
    truth, nll = cells
    gaps = []
    for K in (1, 4, 64, 1024):
        gap = importance_bound(nll(K)) - truth
        gaps.append(gap.mean().item())
        assert gaps[-1] > -3 * gap.std().item() / 20
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    assert gaps[-1] < 0.05


@pytest.mark.parametrize("common", [True, False], ids=["common noise", "own noise"])
def test_crossed_halves_bound_from_above_where_noisy_likelihoods_do_not(cells, common):
    truth, nll = cells
    generator = torch.Generator().manual_seed(2)
    draws, K, deviation = 6, 8, 4.0
    values = nll(K)
    noise = torch.randn(2, 400, draws, 1 if common else K, dtype=torch.float64, generator=generator) * deviation
    first, second = values[:, None] + noise
    gap = crossed_importance_bound(first, second) - truth
    error = gap.std().item() / 20
    assert gap.mean() > -3 * error
    # Not looser than K = 1, which is all that draws which tell nothing apart can give.
    assert gap.mean() < (values.mean(1) - truth).mean() + 3 * error
    naive = importance_bound(torch.cat([first, second], 1).mean(1)) - truth
    if not common:
        assert naive.mean() < importance_bound(values).sub(truth).mean() - 3 * naive.std() / 20
        single = importance_bound(first[:, 0]) - truth
        assert single.mean() < -3 * single.std() / 20


def test_crossed_halves_of_exact_likelihoods_are_the_bound(cells):
    values = cells[1](8)
    torch.testing.assert_close(crossed_importance_bound(values[:, None], values[:, None]), importance_bound(values))
