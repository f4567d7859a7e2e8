"""Data whose density is known, with their exact fields ``F*``: what the method is tested against."""

import math

import torch
from torch import Tensor

from fdtrain.diffusion.process import alpha
from fdtrain.diffusion.solvers import Solver, sample


class Mixture:
    """Mixture of isotropic Gaussians in ``d`` dimensions; one component is a Gaussian.

    ``F* = (-score - x) / alpha``. For one component, with ``w = alpha^2 v + t^2`` the variance at t,
    ``F* = (alpha (1 - v) x - m) / w``, which is regular on all of [0, 1]; a mixture's is the posterior mean
    of its components'.
    """

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor):
        self.means, self.variances, self.weights = means.double(), variances.double(), weights.double()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[which] + self.variances[which].sqrt()[:, None] * noise

    def _log_components(self, x: Tensor, a: Tensor, w: Tensor) -> Tensor:
        """Log of each weighted component's density at ``x``: ``(B, K)``."""
        square = (x[:, None] - a[..., None] * self.means).square().sum(-1)
        d = x.shape[1]
        return self.weights.log() - 0.5 * square / w - 0.5 * d * torch.log(2 * math.pi * w)

    def nll(self, x: Tensor) -> Tensor:
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        return -self._log_components(x, ones, self.variances.expand(len(x), -1)).logsumexp(1)

    def field(self, x: Tensor, t: Tensor) -> Tensor:
        a = alpha(t)[:, None]
        w = a * a * self.variances + (t * t)[:, None]
        posterior = self._log_components(x, a, w).softmax(1)
        each = ((a * (1 - self.variances))[..., None] * x[:, None] - self.means) / w[..., None]
        return (posterior[..., None] * each).sum(1)


class Axes:
    """Gaussian with independent dimensions of their own deviations about one mean."""

    def __init__(self, deviations: Tensor, mean: float = 0.3):
        self.deviations, self.mean = deviations.double(), mean

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.deviations), dtype=torch.float64, generator=generator)
        return self.mean + self.deviations * noise

    def nll(self, x: Tensor) -> Tensor:
        return -torch.distributions.Normal(self.mean, self.deviations).log_prob(x).sum(1)

    def field(self, x: Tensor, t: Tensor) -> Tensor:
        a, variance = alpha(t)[:, None], self.deviations.square()
        return (a * (1 - variance) * x - self.mean) / (a * a * variance + (t * t)[:, None])


def spectrum(mean: float = 0.3) -> Axes:
    """As of images: from 15, their largest direction, down to the noise of their quantisation."""
    return Axes(torch.logspace(math.log10(15), math.log10(0.005), 16, dtype=torch.float64), mean)


def mean_kl(data: Axes, solver: Solver, times: list[float]) -> float:
    """KL(model || data) in nats, the mean over dimensions, of the samples of a solver that is affine in ``x`` and the
    noise: exact, by its response to each alone (docs/method.md, section 5)."""
    x = torch.zeros(len(times) + 1, len(data.deviations), dtype=torch.float64)
    x[1] = 1

    def noise(step: int) -> Tensor:
        z = torch.zeros_like(x)
        z[step + 2] = 1
        return z

    mean, *others = sample(data.field, x, times, solver, noise)
    ratio = (torch.stack(others) - mean).square().sum(0) / data.deviations**2
    return (0.5 * (ratio + ((mean - data.mean) / data.deviations) ** 2 - 1 - ratio.log())).mean().item()


def gaussian(mean: float = 0.7, variance: float = 0.04, d: int = 1) -> Mixture:
    return Mixture(torch.full((1, d), mean), torch.tensor([variance]), torch.tensor([1.0]))


def three_modes(d: int = 2) -> Mixture:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(3, d, generator=generator) * 1.6 - 0.8
    return Mixture(means, torch.tensor([0.003, 0.02, 0.08]), torch.tensor([0.5, 0.3, 0.2]))
