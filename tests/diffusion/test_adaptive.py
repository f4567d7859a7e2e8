"""The piecewise density and its allocation, against what both are of functions that are known."""

import math

import pytest
import torch
from scipy import integrate

from fdtrain.diffusion.adaptive import Moments, Piecewise
from fdtrain.diffusion.clocks import CLOCKS, Asinh, Restricted, Uniform

VDM = CLOCKS["vdm"]
BASES = [Uniform(), Asinh(0.03), Restricted(VDM, VDM.interval)]
MASSES = (0.1, 0.4, 0.05, 0.2, 0.25)


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
def test_it_is_a_density_on_the_interval_of_its_base(base):
    density = Piecewise(base, MASSES)
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = density.quantile(u)
    assert torch.equal(t[[0, -1]], base.quantile(u[[0, -1]]))
    assert (t.diff() > 0).all()
    torch.testing.assert_close(density.cdf(t), u, rtol=1e-9, atol=1e-12)
    inner = t[(u * 1000).round() % 50 != 0]
    slope = torch.autograd.functional.jacobian(lambda v: density.cdf(v).sum(), inner)
    torch.testing.assert_close(slope, density.pdf(inner), rtol=1e-9, atol=0)


def test_each_part_of_the_base_has_its_mass():
    density, edges = Piecewise(Asinh(0.03), MASSES), torch.linspace(0, 1, 6, dtype=torch.float64)
    for low, high, mass in zip(*(Asinh(0.03).quantile(e).tolist() for e in (edges[:-1], edges[1:])), MASSES):
        found, _ = integrate.quad(lambda t: density.pdf(torch.tensor(t, dtype=torch.float64)).item(), low, high)
        assert found == pytest.approx(mass, rel=1e-6)


def test_the_mean_over_it_is_the_integral():
    """For a density that fits the integrand badly: weights undo it."""
    density = Piecewise(Asinh(0.03), MASSES)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    t = density.quantile(u)
    assert (torch.exp(t) / density.pdf(t)).mean().item() == pytest.approx(math.e - 1, rel=1e-6)
    torch.testing.assert_close(density.base.pdf(t) * density.ratio(u), density.pdf(t), rtol=1e-12, atol=0)


def test_before_anything_is_learned_it_is_its_base():
    u = torch.linspace(0, 1, 777, dtype=torch.float64)
    density, base = Piecewise.like(Asinh(0.03), 32), Asinh(0.03)
    torch.testing.assert_close(density.quantile(u), base.quantile(u), rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(density.pdf(base.quantile(u)), base.pdf(base.quantile(u)), rtol=1e-12, atol=0)


def moments(deviations, means, count=1e6):
    squares = [count * (s * s + m * m) for s, m in zip(deviations, means)]
    return Moments([count] * len(means), [count * m for m in means], squares)


def test_the_allocation_is_neymans():
    """Proportional to the deviations, whatever the means; its variance is the least, by the efficiency."""
    deviations = [0.1, 0.4, 2.0, 1.5]
    found = moments(deviations, [3.0, -1.0, 0.0, 7.0])
    masses = found.masses(1e-9)
    assert masses == pytest.approx([s / 4.0 for s in deviations], rel=1e-3)

    def variance(allocated):
        return sum(s * s / 16 / m for s, m in zip(deviations, allocated))

    least, base = variance(masses), variance([0.25] * 4)
    assert found.efficiency() == pytest.approx(least / base, rel=1e-3)
    for k in range(4):
        other = [m + (0.01 if j == k else -0.01 / 3) for j, m in enumerate(masses)]
        assert variance(other) > least


def test_the_floor_bounds_the_weights():
    masses = moments([1e-9, 0.0, 5.0, 0.0], [0.0] * 4).masses(0.2)
    assert min(masses) >= 0.05
    assert sum(masses) == pytest.approx(1, rel=1e-15)
    assert moments([1.0, 3.0], [0.0, 0.0]).masses(1.0) == (0.5, 0.5)


def test_where_nothing_is_known_the_base_stays():
    nothing = Moments([0.0] * 4, [0.0] * 4, [0.0] * 4)
    assert nothing.masses(0.2) == (0.25,) * 4
    assert nothing.efficiency() is None
    assert moments([0.0] * 4, [2.0] * 4).masses(0.2) == pytest.approx([0.25] * 4)


def test_a_few_draws_say_little():
    """One bin of ten draws that are all alike, beside three of many."""
    few = Moments([10.0, 1e6, 1e6, 1e6], [0.0] * 4, [0.0, 1e6, 1e6, 1e6])
    assert few.masses(1e-9)[0] / few.masses(1e-9)[1] == pytest.approx((2 / 11) ** 0.5, rel=1e-4)
