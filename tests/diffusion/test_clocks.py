"""Clocks as densities, against their published forms (docs/method.md, 'Other formulations')."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from fdtrain.diffusion.clocks import CLOCKS, DENSITIES, LinearVP, SoftTruncation, time_density
from fdtrain.diffusion.interval import CLOSED, Interval

INNER = Interval(0.0013, 0.9966)
TAU = np.linspace(1e-3, 0.999, 50)
B = 0.1 * TAU + 9.95 * TAU**2
ALPHA_END = math.exp(-0.5 * 10.05)

# (signal, noise) of z at TAU, as the sources have them.
PUBLISHED = {
    "linear_vp": (np.exp(-B / 2), np.sqrt(1 - np.exp(-B))),
    "sub_vp": (np.exp(-B / 2), 1 - np.exp(-B)),
    "zero_snr_vp": ((a := (np.exp(-B / 2) - ALPHA_END) / (1 - ALPHA_END)), np.sqrt(1 - a**2)),
    "cosine": (
        (a := np.cos(np.pi / 2 * (TAU + 0.008) / 1.008) / np.cos(np.pi / 2 * 0.008 / 1.008)),
        np.sqrt(1 - a**2),
    ),
    "flow": (1 - TAU, TAU),
    # Of images in [0, 1], which are halves of those in [-1, 1].
    "ve": (0.5 * np.ones_like(TAU), 0.01 * 5000**TAU),
    "vdm": (
        np.sqrt(1 / (1 + np.exp(-13.3 + 18.3 * TAU))),
        np.sqrt(1 / (1 + np.exp(13.3 - 18.3 * TAU))),
    ),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_is_the_published_process_rescaled(name):
    signal, noise = PUBLISHED[name]
    t = torch.from_numpy(noise / np.sqrt(signal**2 + noise**2))
    tau = torch.from_numpy(TAU)
    torch.testing.assert_close(CLOCKS[name].quantile(tau), t, rtol=1e-9, atol=0)
    torch.testing.assert_close(CLOCKS[name].cdf(t), tau, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "scale", "interval"),
    [
        *((name, 0.03, INNER) for name in DENSITIES),
        ("uniform", 1, CLOSED),
        *(("asinh", s, CLOSED) for s in (1 / 256, 1)),
    ],
)
def test_densities_on_an_interval(name, scale, interval):
    """quantile inverts cdf, pdf is its slope and integrates to 1."""
    density = time_density(name, scale, interval)
    u = torch.linspace(0, 1, 301, dtype=torch.float64)
    t = density.quantile(u)
    assert t[[0, -1]].tolist() == pytest.approx([interval.t_min, interval.t_max], rel=1e-9, abs=0)
    torch.testing.assert_close(density.cdf(t), u, rtol=1e-9, atol=1e-9)
    slope = torch.autograd.functional.jacobian(lambda v: density.cdf(v).sum(), t)
    torch.testing.assert_close(slope, density.pdf(t), rtol=1e-6, atol=1e-12)
    total, _ = integrate.quad(
        lambda v: density.pdf(torch.tensor(math.exp(v), dtype=torch.float64)).item() * math.exp(v),
        math.log(interval.t_min or 1e-9),
        math.log(interval.t_max),
        limit=200,
    )
    assert total == pytest.approx(1, abs=1e-6)


CLOSED_FORMS = {
    "uniform": lambda t: np.ones_like(t),
    "angle": lambda t: 2 / (math.pi * np.sqrt(1 - t**2)),
    "log_time": lambda t: 1 / t,
    "log_snr": lambda t: 2 / (t * (1 - t**2)),
    "edm": lambda t: stats.norm.pdf(np.log(t / np.sqrt(1 - t**2)), -1.2, 1.2) / (t * (1 - t**2)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_densities_have_their_closed_forms(name):
    t = np.linspace(0.01, 0.99, 40)
    found = DENSITIES[name](0.03).pdf(torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(found, CLOSED_FORMS[name](t), rtol=1e-12)


def test_logit_normal_times_are_the_flow_of_a_logistic_normal():
    """t of tau = sigmoid(N(0, 1)) on the flow's clock (Esser et al. 2024)."""
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    tau = torch.sigmoid(torch.special.ndtri(u))
    torch.testing.assert_close(DENSITIES["logit_normal"](0.1).quantile(u), CLOCKS["flow"].quantile(tau))


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0, 1.2, 2.0])
def test_soft_truncation_s_k_is_the_exponent_of_its_beginning(k):
    """Its distribution function is that of a density ~ tau^-k from 1e-5 to 1; the paper's first is 1, log-uniform."""
    soft = time_density("soft_truncation", 0.1, LinearVP().interval, k)
    assert isinstance(soft, SoftTruncation)
    taus = np.geomspace(1e-5, 1, 200001)
    weight = taus ** (1 - k)
    cdf = np.concatenate([[0], np.cumsum(0.5 * (weight[1:] + weight[:-1]))])
    for u in (0.1, 0.5, 0.9):
        interval = soft.of_batch(u).interval
        assert interval.t_max == soft.interval.t_max
        tau = LinearVP().cdf(torch.tensor(interval.t_min, dtype=torch.float64)).item()
        assert np.interp(np.log(tau), np.log(taus), cdf / cdf[-1]) == pytest.approx(u, abs=1e-4)
