import itertools
import math

import pytest
import torch
from densities import gaussian
from spectrum import euler_maruyama

from fdtrain.diffusion.interval import Interval
from fdtrain.diffusion.predictors import x0_hat
from fdtrain.diffusion.solvers import sample, time_grid
from fdtrain.diffusion.solvers.stepper import Stepper

MEAN, VARIANCE = 0.7, 0.04
FIELD = gaussian(MEAN, VARIANCE).field


def uniform(steps):
    return [i / steps for i in range(steps, -1, -1)]


def angle(steps):
    """Even in ``phi``, ``t = sin(phi)``."""
    return [1.0, *(math.sin(0.5 * math.pi * u) for u in uniform(steps)[1:])]


def propagate(run, steps):
    """Mean and variance of a linear sampler's result, exactly: the response to each noise by itself."""
    x = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x[1] = 1.0

    def noise(i):
        z = torch.zeros_like(x)
        z[2 + i] = 1.0
        return z

    end = run(x, noise).flatten()
    return end[0].item(), (end[1:] - end[0]).square().sum().item()


def divergence(mean, variance):
    """KL(model || data) between Gaussians, nats."""
    return 0.5 * ((variance + (mean - MEAN) ** 2) / VARIANCE - 1 + math.log(VARIANCE / variance))


# docs/lab/performance.md: KL at 50, 100 and 200 steps on the uniform grid.
FIGURES = {
    "sde1": (1.61e-3, 3.97e-4, 9.85e-5),
    "sde2": (3.90e-6, 2.11e-7, 1.21e-8),
    "euler_maruyama": (1.90e-3, 3.28e-4, 7.59e-5),
}


@pytest.mark.parametrize("solver", FIGURES)
def test_divergence_from_gaussian_data(solver):
    for steps, figure in zip((50, 100, 200), FIGURES[solver], strict=True):

        def run(x, noise, steps=steps):
            if solver == "euler_maruyama":
                return euler_maruyama(FIELD, x, steps, noise, t_min=1e-3)
            return sample(FIELD, x, uniform(steps), solver, noise)

        assert divergence(*propagate(run, steps)) == pytest.approx(figure, rel=5e-3)


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


def test_ancestral_steps_draw_from_the_posterior():
    """DDPM's ``q(x_t | x_s, x0_hat)`` (Ho et al. 2020, equation 7), written with its own alphas and betas."""
    x, z = torch.tensor([[-1.5], [0.2]], dtype=torch.float64), torch.tensor([[0.7], [-1.1]], dtype=torch.float64)
    expected, times = x, [1.0, 0.8, 0.3, 0.0]
    for s, t in itertools.pairwise(times):
        time = torch.full((2,), s, dtype=torch.float64)
        data = x0_hat(FIELD(expected, time), expected, time)
        before, now = 1 - t * t, 1 - s * s  # cumulative alphas
        beta = 1 - now / before
        mean = math.sqrt(before) * beta / (1 - now) * data
        mean = mean + math.sqrt(now / before) * (1 - before) / (1 - now) * expected
        expected = mean + math.sqrt((1 - before) / (1 - now) * beta) * z
    torch.testing.assert_close(sample(FIELD, x, times, "ancestral", lambda i: z), expected)


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


@pytest.mark.parametrize("times", [[1.0], [0.999, 0.0], [1.0, 1e-5], [1.0, 0.5, 0.5, 0.0]])
def test_a_truncated_grid_is_refused(times):
    with pytest.raises(ValueError, match=r"from 1\.0 to 0\.0"):
        sample(FIELD, torch.randn(1, 1), times, "ode1")
