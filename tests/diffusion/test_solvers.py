"""Published solvers, and any solver on what it is given."""

import itertools
import math

import pytest
import torch
from densities import gaussian

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.predictors import x0_hat
from fdtrain.diffusion.solvers import GRID, SOLVERS, sample, time_grid
from fdtrain.diffusion.solvers.stepper import Stepper

MEAN, VARIANCE = 0.7, 0.04
FIELD = gaussian(MEAN, VARIANCE).field


@pytest.mark.parametrize(
    ("solver", "order"),
    [("ddim", 1), ("dpmpp2m", 2), ("unipc2", 3), ("heun_edm", 2), ("ode2", 2)],
)
def test_order_inside(solver, order):
    """Between two inner times, on a grid even in log-SNR but for a short start, against the flow's exact map.

    UniPC's corrector gains an order.
    """
    first, last = (math.log(math.sqrt(1 - t * t) / t) for t in (0.95, 0.3))
    z = torch.tensor([[-1.5], [0.2], [1.0]], dtype=torch.float64)

    def exact(t):
        return math.sqrt(1 - t * t) * MEAN + math.sqrt((1 - t * t) * VARIANCE + t * t) * z

    def error(steps):
        u = first + (last - first) * torch.linspace(0, 1, steps + 1).double()
        # What the first steps of low order err by falls with their length.
        h = (last - first) / steps
        u = torch.cat([u[:1], u[0] + h * torch.tensor([1e-3, 1e-2, 0.1, 0.4]).double(), u[1:]])
        times = [1 / math.sqrt(1 + math.exp(2 * value)) for value in u.tolist()]
        stepper, x = Stepper(solver, times), exact(times[0])
        for i, t in enumerate(stepper.times):
            x = stepper.advance(i, x, FIELD(x, torch.full((len(x),), t, dtype=torch.float64)))
        return (x - exact(times[-1])).abs().max().item()

    errors = [error(steps) for steps in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_heun_in_sigma_is_edms_algorithm():
    """Karras et al. 2022, algorithm 1, on ``x / alpha`` with the denoiser."""
    interval = Interval(*(sigma / math.hypot(1, sigma) for sigma in (0.002, 80)))
    times = time_grid("karras", 9, interval=interval)
    sigmas = [t / math.sqrt((1 - t) * (1 + t)) for t in times]
    u = [i / 8 for i in range(9)]
    published = [(80 ** (1 / 7) + v * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for v in u]
    assert sigmas == pytest.approx([*published, 0.0], rel=1e-9)

    def denoised(z, sigma):
        t = torch.full((len(z),), sigma / math.hypot(1, sigma), dtype=torch.float64)
        x = z / math.hypot(1, sigma)
        return x0_hat(FIELD(x, t), x, t)

    x = torch.tensor([[-1.5], [0.2]], dtype=torch.float64)
    z = x * math.hypot(1, sigmas[0])
    for sigma, following in itertools.pairwise(sigmas):
        d = (z - denoised(z, sigma)) / sigma
        euler = z + (following - sigma) * d
        if following:
            d = 0.5 * (d + (euler - denoised(euler, following)) / following)
        z = z + (following - sigma) * d
    out = sample(FIELD, x, times, "heun_edm", interval=interval)
    torch.testing.assert_close(out, z, rtol=0, atol=1e-6)


def field(x, t):
    return -torch.tanh(x * (1 + t.view(-1, 1, 1, 1)))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("steps", "interval"),
    [(1, CLOSED), (2, CLOSED), (7, CLOSED), (2, Interval(0.002, 0.9999)), (7, Interval(0.002)), (7, Interval(0, 0.9))],
)
def test_arrays_of_numpy_as_tensors(solver, steps, interval):
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(steps + 1, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    times = time_grid(GRID, steps, interval=interval)
    expected = sample(field, noises[-1], times, solver, lambda i: noises[i], interval=interval)
    stepper, x = Stepper(solver, times, interval), noises[-1].numpy()
    for i, t in enumerate(stepper.times):
        F = field(torch.as_tensor(x), torch.full((2,), t, dtype=torch.float64)).numpy()
        x = stepper.advance(i, x, F, noises[i].numpy() if stepper.stochastic else None)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(torch.as_tensor(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("times", [[1.0], [0.999, 0.0], [1.0, 1e-5], [1.0, 0.5, 0.5, 0.0]])
def test_a_truncated_grid_is_refused(times):
    with pytest.raises(ValueError, match=r"from 1\.0 to 0\.0"):
        sample(FIELD, torch.randn(1, 1), times, "ode1")
