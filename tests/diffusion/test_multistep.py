"""The family's coefficients, its exactness, its order, and how near it comes to data with the spectrum of images."""

import itertools
import math

import numpy as np
import pytest
import torch
from densities import Axes, gaussian, mean_kl, spectrum, three_modes

from fdtrain.diffusion.solvers import GRID, SOLVERS, sample, time_grid
from fdtrain.diffusion.solvers.multistep import (
    ODE_DATA,
    ODE_F,
    SDE_DATA,
    SDE_F,
    integrals,
    scaled_angle,
)
from fdtrain.diffusion.solvers.named import member

EQUATIONS = {"sde, F": SDE_F, "ode, F": ODE_F, "sde, data": SDE_DATA, "ode, data": ODE_DATA}


def phi(phi):
    return phi


def sine(steps, power):
    """Times ``sin(pi/2 u^power)``."""
    return [1.0, *(math.sin(0.5 * math.pi * (i / steps) ** power) for i in range(steps - 1, 0, -1)), 0.0]


def _alpha(t):
    return math.sqrt((1 - t) * (1 + t))


# Mean KL per dimension at these evaluations.
NFE = (5, 8, 10, 15, 20, 30)
# docs/lab/performance.md: by the rule, for 256 levels and 2,500 numbers of images whose largest deviation is about 15.
OURS = {
    "ode": (2.100e-1, 2.888e-2, 6.414e-3, 3.192e-4, 3.560e-4, 6.847e-5),
    "sde": (2.633e-1, 5.447e-2, 1.863e-2, 2.283e-3, 1.650e-3, 7.079e-4),
}
DIMS = 2500


@pytest.mark.parametrize("name", OURS)
def test_divergence_of_our_solvers_by_the_rule(name):
    for nfe, figure in zip(NFE, OURS[name], strict=True):
        found = mean_kl(spectrum(0.0), SOLVERS[name], time_grid(GRID, nfe, 256, DIMS))
        assert found == pytest.approx(figure, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "figures"), [("sde1", (1.61e-3, 3.97e-4, 9.85e-5)), ("sde2", (3.90e-6, 2.11e-7, 1.21e-8))]
)
def test_divergence_of_the_papers_solvers_on_a_uniform_grid(name, figures):
    """docs/lab/performance.md, of N(0.7, 0.04)."""
    data = Axes(torch.tensor([0.2]), 0.7)
    for steps, figure in zip((50, 100, 200), figures, strict=True):
        times = [i / steps for i in range(steps, -1, -1)]
        assert mean_kl(data, SOLVERS[name], times) == pytest.approx(figure, rel=5e-3)


# The formulas as published: one step of each from (x, s, F_s, r, F_r) to t.


def sde1(x, s, F, r, G, t, z):
    return (_alpha(s) * x - (s - t) * (s + t) * F + math.sqrt((s - t) * (s + t)) * z) / _alpha(t)


def sde2(x, s, F, r, G, t, z):
    if r is None:
        return sde1(x, s, F, r, G, t, z)
    y = (s - t) * (s + t)
    g = (2 * (s**3 - t**3) / 3 - s * y) / (r - s)
    return (_alpha(s) * x - (y - g) * F - g * G + math.sqrt(y) * z) / _alpha(t)


def ode1(x, s, F, r, G, t, z):
    return x - (_alpha(t) - _alpha(s)) * F


def ode2(x, s, F, r, G, t, z):
    if r is None:
        return ode1(x, s, F, r, G, t, z)
    step = _alpha(t) - _alpha(s)
    return x - step * F - 0.5 * step * step * (F - G) / (_alpha(s) - _alpha(r))


def ddim(x, s, F, r, G, t, z):
    return _alpha(t) * (_alpha(s) * x - s * s * F) + t * (s * x + s * _alpha(s) * F)


def dpmpp2m(x, s, F, r, G, t, z, memory={}):  # noqa: B006 (the image of the last evaluation)
    D = _alpha(s) * x - s * s * F
    before, memory["D"] = memory.get("D"), D
    if r is not None and r < 1 and t > 0:

        def half_log_snr(t):
            return math.log(_alpha(t) / t)

        ratio = (half_log_snr(t) - half_log_snr(s)) / (2 * (half_log_snr(s) - half_log_snr(r)))
        D = D + (D - before) * ratio
    return t / s * x - (_alpha(s) * t / s - _alpha(t)) * D


def ancestral(x, s, F, r, G, t, z):
    """DDPM's ``q(x_t | x_s, x0_hat)`` (Ho et al. 2020, equation 7), written with its own alphas and betas."""
    before, now = 1 - t * t, 1 - s * s  # cumulative alphas
    beta = 1 - now / before
    mean = math.sqrt(before) * beta / (1 - now) * (_alpha(s) * x - s * s * F)
    mean = mean + math.sqrt(now / before) * (1 - before) / (1 - now) * x
    return mean + math.sqrt((1 - before) / (1 - now) * beta) * z


@pytest.mark.parametrize("step", [sde1, sde2, ode1, ode2, ddim, dpmpp2m, ancestral])
@pytest.mark.parametrize("times", [time_grid(GRID, 12, 30), sine(12, 1)])
def test_solvers_written_step_by_step(step, times):
    data, generator = three_modes(2), torch.Generator().manual_seed(1)
    start = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    z = torch.randn(12, 5, 2, dtype=torch.float64, generator=generator)
    x, r, G = start, None, None
    for i in range(12):
        s, t = times[i], times[i + 1]
        F = data.field(x, torch.full((5,), s, dtype=torch.float64))
        x, r, G = step(x, s, F, r, G, t, z[i]), s, F
    found = sample(data.field, start, times, step.__name__, lambda i: z[i])
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize(("s", "t"), [(1.0, 0.3), (1.0, 1e-7), (0.5, 1e-9), (0.5, 0.49999), (1.0, 0.0), (1e-3, 0.0)])
def test_coefficients_at_the_ends_of_the_interval(name, s, t):
    """Nothing is singular; the weights of any order sum to that of a constant."""
    equation = EQUATIONS[name]
    (total,) = integrals(equation, phi, [s], s, t)
    for nodes in ([s, 1.0], [s, 0.9, 1.0]) if s < 0.9 else ([s],):
        weights = integrals(equation, scaled_angle, nodes, s, t)
        assert np.isfinite(weights).all()
        assert sum(weights) == pytest.approx(total, rel=1e-10)
    assert math.isfinite(equation.linear(s, t))
    if equation.noise:
        assert math.isfinite(equation.noise(s, t))
        # Signal and noise are what is left of x_0 = D and eps: alpha_t, and t^2 = (linear s)^2 + noise^2.
        if equation.form == "data":
            assert (equation.linear(s, t) * s) ** 2 + equation.noise(s, t) ** 2 == pytest.approx(t * t, rel=1e-12)


@pytest.mark.parametrize("equation", [ODE_F, ODE_DATA])
@pytest.mark.parametrize(("p", "c", "order"), [(1, 0, 1), (2, 0, 2), (1, 2, 2), (2, 3, 3)])
def test_order_of_the_family_from_one_end_to_the_other(equation, p, c, order):
    """By halving, against the exact map of x_1 = z to m + sqrt(v) z. The first step is of first order in all."""
    z = torch.tensor([[-1.5], [0.2], [1.0]], dtype=torch.float64)
    solver = member(equation, phi, p, c)

    def error(steps):
        out = sample(gaussian(0.7, 0.04).field, z, sine(steps, 2), solver)
        return (out - (0.7 + 0.2 * z)).abs().max().item()

    errors = [error(steps) for steps in (50, 100, 200)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations(name, steps):
    """From 1 exactly to 0 exactly: one a step, none at t = 0, all finite. Heun's method takes two, but in steps from
    t = 1 and to t = 0, which are Euler's."""
    calls = []

    def field(x, t):
        calls.append(t[0].item())
        return gaussian(0.7, 0.04).field(x.double(), t).float()

    z = torch.randn(2, 1)
    out = sample(field, z, time_grid(GRID, steps), name, lambda i: z)
    assert torch.isfinite(out).all()
    assert len(calls) == (2 * steps - 2 if name == "heun_edm" and steps > 1 else steps)
    assert (len(set(calls)), calls[0], min(calls) > 0) == (steps, 1.0, True)


def energy_distance(x, y):
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, unbiased: its mean is zero for samples of one distribution."""

    def within(x):
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("sde1", "ode1", "ddim", "ancestral")])
def test_samples_of_a_mixture_are_distributed_as_its_own(name):
    """Energy distance at 100 evaluations, against that between draws of the mixture itself."""
    data, generator, n = three_modes(2), torch.Generator().manual_seed(3), 1000
    x = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    times = time_grid(GRID, 100 // SOLVERS[name].evaluations_per_step, 30, 2)
    out = sample(data.field, x, times, name, lambda i: torch.randn(x.shape, dtype=x.dtype, generator=generator))
    truth = [data.sample(n, generator) for _ in range(9)]
    null = [energy_distance(a, b) for a, b in itertools.pairwise(truth)]
    spread = math.sqrt(sum(value**2 for value in null) / len(null))
    distances = [energy_distance(out, other) for other in truth]
    assert sum(distances) / len(distances) < 3 * spread
