"""Likelihood of images under a model: the bound, and the probability-flow ODE (docs/method.md, sections 3 and 6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain.diffusion.decoders import truncated_normal, truncated_normal_entropy
from fdtrain.diffusion.integrate import bogacki_shampine
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.objective import Bound, normal_nll


@dataclass(frozen=True)
class Estimate:
    """A mean over images and draws, with its two standard errors, all in the unit of the values.

    ``error_draws`` is what a repetition with fresh draws over the same images would vary by;
    ``error_images`` is what another sample of images (and draws) would.
    """

    mean: float
    error_draws: float
    error_images: float
    images: int
    draws: int


def estimate(values: Tensor) -> Estimate:
    """Mean and standard errors of ``values``, shape ``(images, draws)``, an image's draws in the order of their strata.

    One draw per stratum leaves no spread within strata to look at; that between neighbours stands for it (successive
    differences; Cochran, Sampling Techniques, 1977, section 5A.12). It overstates by the strata's own differences
    only, which errs on the safe side, and it is unbiased for independent draws.
    """
    values = values.double()
    images, draws = values.shape
    within = standard_errors(values).square().mean() * draws
    between = values.mean(1).var() if images > 1 else torch.tensor(math.nan)
    return Estimate(
        values.mean().item(), math.sqrt(within / (images * draws)), math.sqrt(between / images), images, draws
    )


def standard_errors(values: Tensor) -> Tensor:
    """Of each image's mean over its draws, ``(images,)``, as in :func:`estimate`; NaN of a single draw."""
    draws = values.shape[1]
    return (0.5 * values.double().diff(dim=1).square().mean(1) / draws).sqrt()


def importance_bound(nll: Tensor) -> Tensor:
    """``-log (1/K) sum_k exp(-nll_k)``: the importance-weighted bound of exact likelihoods ``(..., K)``, nats."""
    return math.log(nll.shape[-1]) - torch.logsumexp(-nll, -1)


def crossed_importance_bound(first: Tensor, second: Tensor) -> Tensor:
    """The importance-weighted bound from noisy likelihoods: an upper bound in the mean, whatever the noise.

    For every choice of weights ``w``, ``-log (1/K) sum_k exp(-nll_k) <= sum_k w_k nll_k + KL(w || 1/K)``, with
    equality at ``w = softmax(-nll)``. One half of the draws chooses the weights and the other, independent, estimates
    the right side, which is linear in it; then the halves change places. ``logsumexp`` of the noisy values
    themselves would be too low, by half their variance (docs/method.md, section 3).

    Args:
        first, second: unbiased estimates of each ``nll_k`` in nats, ``(images, draws, K)``, independent of each other.
            The same draw may serve all ``k`` of an image; draws in the order of their strata.

    Returns:
        One value per image, nats.
    """
    return 0.5 * (_weighted(second.mean(1), _log_weights(first)) + _weighted(first.mean(1), _log_weights(second)))


def _weighted(nll: Tensor, log_weights: Tensor) -> Tensor:
    return (log_weights.exp() * (nll + log_weights)).sum(-1) + math.log(nll.shape[-1])


def _log_weights(nll: Tensor) -> Tensor:
    """``log softmax`` of the shrunk ``-nll``: differences that the draws cannot tell from noise get no weight."""
    mean = nll.mean(1)
    draws, spread = nll.shape[1], mean.var(-1, keepdim=True)
    shrink = torch.ones_like(spread)
    if draws > 1:
        # What is left without the effect of the draw, which is common to all k, and that of k.
        centred = nll - nll.mean(2, keepdim=True)
        freedom = draws * (1 - 1 / nll.shape[-1])
        noise = 0.5 * centred.diff(dim=1).square().mean((1, 2))[:, None] / freedom
        shrink = (1 - noise / spread.clamp(min=1e-30)).clamp(min=0)
    return torch.log_softmax(-shrink * mean, -1)


def divergence(F: Tensor, x: Tensor, probes: Tensor | None = None) -> Tensor:
    """Of ``F(x)``, image by image: exactly, ``(B, 1)``, by one backward pass per dimension, or estimated by probes.

    Rademacher probes (entries +1 and -1), ``(B, probes, ...)``, each like ``x``, give unbiased estimates by one
    backward pass each, ``(B, probes)`` (Hutchinson 1990).
    """

    def product(probe: Tensor) -> Tensor:
        return torch.autograd.grad(F, x, probe, retain_graph=True)[0]

    if probes is not None:
        return torch.stack([(product(probe) * probe).flatten(1).sum(1) for probe in probes.unbind(1)], 1)
    total = torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)
    for unit in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device):
        total += product(unit.view_as(x[0]).expand_as(x)).flatten(1) @ unit[:, None]
    return total


def ode_start(bound: Bound, levels_image: Tensor, u: Tensor) -> tuple[Tensor, float]:
    """``x`` at ``t_min`` from a discrete image, dequantised by uniform ``u`` as the model's bound says, and the entropy
    of that, nats per dimension.

    Uniformly, the image is taken for ``x`` at ``t_min`` as it is (score_sde; on the closed interval it is that); its
    entropy, 0 here, is what :meth:`Bound.bits_per_dim` counts. At bin centres, by truncated-normal noise, ``x = alpha
    x_k + t_min eps`` (i-DODE, Zheng et al. 2023): then ``log P(x_k) >= E[log p(x)] + entropy``.
    """
    x0, t_min, levels = bound.images(levels_image, u), bound.interval.t_min, bound.levels
    if not bound.discrete:
        return x0, 0.0
    x = math.sqrt((1 - t_min) * (1 + t_min)) * x0 + t_min * truncated_normal(u, levels, t_min)
    return x, truncated_normal_entropy(levels, t_min)


@dataclass(frozen=True)
class OdeLikelihood:
    """``nll``: ``-log p(x0)`` in nats by each estimate of the divergence, ``(B, probes)``; ``nfe``: evaluations of the
    field for each image, ``(B,)``."""

    nll: Tensor
    nfe: Tensor


ODE_SOLVER = "Bogacki-Shampine in u"
"""Of :func:`ode_nll`, for the record of a result: errors at one tolerance are comparable within a solver only."""
LARGE = 0.1
"""About the reciprocal of the data's largest standard deviation."""


@dataclass(frozen=True)
class _Place:
    """``u = log((phi + low) / (pi/2 - phi + high))`` with ``t = sin(phi)``: even in the logarithm of the noise."""

    low: float
    high: float

    def of(self, t: float) -> float:
        phi = math.asin(t)
        return math.log((phi + self.low) / (math.pi / 2 - phi + self.high))

    def angle(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``phi`` and ``dphi/du``."""
        ratio, whole = u.exp(), math.pi / 2 + self.low + self.high
        phi = (ratio * whole / (1 + ratio) - self.low).clamp(0, math.pi / 2)
        return phi, ratio * whole / (1 + ratio).square()


def ode_nll(
    field: Callable[..., Tensor],
    x0: Tensor,
    tolerance: float,
    probes: Tensor | None = None,
    label: Tensor | None = None,
    interval: Interval = CLOSED,
    scale: float = 1 / 256,
) -> OdeLikelihood:
    """Likelihood ``log p(x0) = log N(x_1; 0, I) + Int_0^{pi/2} sin(phi) div F dphi``, ``t = sin(phi)``.

    On a truncated interval it is that of ``x`` at ``t_min``, with the standard normal at ``t_max``. Each image has its
    own adaptive steps in ``u = log((phi + scale) / (pi/2 - phi + 0.1))``: even in the logarithm of the noise between
    the data's finest scale and their largest directions, and finite at both ends. Where an end is cut off, so is its
    constant (docs/method.md, section 6).

    Args:
        field: ``F(x, t)``, or ``F(x, t, label)`` with labels, differentiable in ``x``; of some of the images at a time.
        x0: dequantised images in [-1, 1], or ``x`` at ``t_min`` (:func:`ode_start`); float64 gives a float64 answer.
        tolerance: of the error of a step: of ``x`` the root mean square in units of ``sqrt(t^2 + scale^2)``, and of the
            log-density nats per dimension, for every probe by itself.
        probes: of :func:`divergence`, ``(B, probes, ...)``; None: exact.
        label: of the images, ``(B,)``.
        interval: of the model.
        scale: the data's finest, about ``1 / levels``.

    Raises:
        FloatingPointError: as :func:`bogacki_shampine`.
    """
    dims, columns = x0[0].numel(), 1 if probes is None else probes.shape[1]
    condition = () if label is None else (label,)
    place = _Place(scale if interval.t_min == 0 else 0.0, LARGE if interval.t_max == 1 else 0.0)

    def derivative(u: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        phi, speed = place.angle(u)
        # The ends themselves, not their roundings.
        t = phi.sin().clamp(interval.t_min, interval.t_max)
        with torch.enable_grad():
            x = state[:, :dims].reshape(-1, *x0.shape[1:]).detach().requires_grad_()
            F = field(x, t, *(own[rows] for own in condition))
            trace = divergence(F, x, None if probes is None else probes[rows])
        return (t * speed).to(x.dtype)[:, None] * torch.cat([F.detach().flatten(1), trace / dims], 1)

    def size(u: Tensor, error: Tensor) -> Tensor:
        noise = (place.angle(u)[0].sin().square() + scale * scale).sqrt().to(error.dtype)
        of_x = error[:, :dims].square().mean(1).sqrt() / noise
        return torch.maximum(of_x, error[:, dims:].abs().amax(1)) / tolerance

    start = torch.cat([x0.flatten(1), x0.new_zeros(len(x0), columns)], 1)
    end, nfe = bogacki_shampine(derivative, start, place.of(interval.t_min), place.of(interval.t_max), size)
    return OdeLikelihood(normal_nll(end[:, :dims])[:, None] - dims * end[:, dims:], nfe)
