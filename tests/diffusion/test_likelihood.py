import math

import pytest
import torch
from densities import gaussian, spectrum, three_modes

from fdtrain.diffusion.integrate import bogacki_shampine
from fdtrain.diffusion.likelihood import (
    crossed_importance_bound,
    divergence,
    estimate,
    importance_bound,
    ode_nll,
)
from fdtrain.diffusion.objective import dequantise
from fdtrain.diffusion.process import alpha

DENSITIES = {"gaussian": gaussian(d=3), "mixture": three_modes(2), "spectrum": spectrum()}


@pytest.mark.parametrize("data", DENSITIES.values(), ids=DENSITIES)
def test_ode_gives_the_exact_likelihood(data):
    x0 = data.sample(20, torch.Generator().manual_seed(0))
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-3, 1e-5):
        result = ode_nll(data.field, x0, tolerance)
        errors.append((result.nll[:, 0] - data.nll(x0)).abs().mean().item() / x0.shape[1])
        evaluations.append(result.nfe.double().mean().item())
    assert all(error < bound for error, bound in zip(errors, (2e-2, 3e-3, 3e-5), strict=True)), errors
    assert evaluations == sorted(evaluations)
    assert evaluations[1] < 120


def test_an_image_is_solved_alike_among_others():
    """By its own steps, with the probe that is its own: a hard image does not slow the others, nor change them."""
    data, generator = three_modes(4), torch.Generator().manual_seed(0)
    x0 = data.sample(6, generator)
    x0[2] *= 40
    probes = rademacher(6, 2, 4, generator)
    together = ode_nll(data.field, x0, 1e-3, probes)
    assert len(together.nfe.unique()) > 1
    for i in range(6):
        alone = ode_nll(data.field, x0[i : i + 1], 1e-3, probes[i : i + 1])
        torch.testing.assert_close(alone.nll[0], together.nll[i], rtol=1e-10, atol=1e-10)
        assert alone.nfe[0] == together.nfe[i]


def test_labels_go_with_their_images():
    means = torch.tensor([-0.5, 0.0, 0.8])
    x0, label = torch.randn(9, 2, dtype=torch.float64) * 3, torch.arange(9) % 3

    def field(x, t, label):
        a, w = alpha(t)[:, None], (0.04 * (1 - t * t) + t * t)[:, None]
        return (a * 0.96 * x - means[label][:, None]) / w

    nll = ode_nll(field, x0, 1e-5, label=label).nll[:, 0]
    exact = -torch.distributions.Normal(means[label][:, None], 0.2).log_prob(x0).sum(1)
    torch.testing.assert_close(nll, exact, rtol=1e-5, atol=1e-3)


def rademacher(images, probes, dims, generator):
    return (torch.randint(0, 2, (images, probes, dims), generator=generator) * 2 - 1).double()


def test_probes_are_unbiased_estimates_each():
    data, generator = three_modes(4), torch.Generator().manual_seed(0)
    x0 = data.sample(1, generator).repeat(500, 1)
    probes = rademacher(500, 2, 4, generator)
    estimates = ode_nll(data.field, x0, 1e-4, probes).nll
    assert estimates.shape == (500, 2)
    error = estimates.std().item() / math.sqrt(1000)
    assert abs(estimates.mean() - data.nll(x0)[0]) < 3 * error + 1e-3
    alone = ode_nll(data.field, x0[:20], 1e-4, probes[:20, 1:]).nll
    torch.testing.assert_close(estimates[:20, 1:], alone, rtol=0, atol=5e-3)


def test_divergence():
    x = torch.randn(3, 1, 2, 2, requires_grad=True)
    expected = (3 * x**2).flatten(1).sum(1, keepdim=True).detach()
    torch.testing.assert_close(divergence(x**3, x), expected)
    # The map is diagonal, so that every probe is exact.
    torch.testing.assert_close(divergence(x**3, x, -torch.ones(3, 2, 1, 2, 2)), expected.expand(3, 2))


def test_failures_say_where():
    y = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"at u = 0\.1"):
        # Blows up at u = 0.1.
        bogacki_shampine(lambda u, y, rows: y * y * 10, y, 0.0, 1.0, lambda u, error: error.abs().amax(1) / 1e-2)
    with pytest.raises(FloatingPointError, match=r"not finite at u = -6\.0"):
        ode_nll(lambda x, t: x / 0, torch.ones(2, 3), 1e-3)


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
