"""Likelihood of images under a model: the bound, and the probability-flow ODE (docs/method.md, sections 3 and 6)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain.diffusion.decoders import truncated_normal, truncated_normal_entropy
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.objective import Bound, normal_nll
from fdtrain.diffusion.predictors import Field


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


def exact_trace(f: Tensor, x: Tensor) -> Tensor:
    """Divergence of ``f(x)`` image by image, exactly: one backward pass per dimension."""
    flat = f.flatten(1)
    total = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    for i in range(flat.shape[1]):
        (grad,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        total += grad.flatten(1)[:, i]
    return total


def hutchinson_trace(*probes: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Unbiased divergence by a fixed Rademacher probe like ``x`` (entries +1 and -1): one backward pass.

    Of several probes each gives an estimate of its own: ``(B, probes)``.
    """

    def trace(f: Tensor, x: Tensor) -> Tensor:
        estimates = []
        for probe in probes:
            (grad,) = torch.autograd.grad(f, x, probe, retain_graph=True)
            estimates.append((grad * probe).flatten(1).sum(1))
        return estimates[0] if len(probes) == 1 else torch.stack(estimates, 1)

    return trace


@dataclass(frozen=True)
class OdeStart:
    """Where the ODE starts from a discrete image: dequantised as the model's bound says.

    Uniformly, the image is taken for ``x`` at ``t_min`` as it is (score_sde; on the closed interval it is that). At bin
    centres, by truncated-normal noise, ``x = alpha x_k + t_min eps`` (i-DODE, Zheng et al. 2023): then ``log P(x_k) >=
    E[log p(x)] + entropy``.
    """

    bound: Bound

    @property
    def dequantisation(self) -> str:
        return "truncated normal" if self.bound.discrete else "uniform"

    def images(self, levels_image: Tensor, u: Tensor) -> Tensor:
        """``x`` at ``t_min``, from uniform ``u``."""
        x0, t_min = self.bound.images(levels_image, u), self.bound.interval.t_min
        if not self.bound.discrete:
            return x0
        return math.sqrt((1 - t_min) * (1 + t_min)) * x0 + t_min * truncated_normal(u, self.bound.levels, t_min)

    def entropy(self, dims: int) -> float:
        """Of the dequantisation, nats; 0 of the uniform one, which :meth:`Bound.bits_per_dim` counts."""
        return (
            dims * truncated_normal_entropy(self.bound.levels, self.bound.interval.t_min)
            if self.bound.discrete
            else 0.0
        )


@dataclass(frozen=True)
class OdeLikelihood:
    """``nll``: ``-log p(x0)`` in nats, ``(B,)``, or ``(B, probes)`` where the trace has several; ``nfe``: evaluations
    of the field; ``latent``: ``x_1``."""

    nll: Tensor
    nfe: int
    latent: Tensor


def ode_nll(
    field: Field,
    x0: Tensor,
    trace: Callable[[Tensor, Tensor], Tensor],
    tolerance: float = 1e-5,
    columns: int = 1,
    interval: Interval = CLOSED,
) -> OdeLikelihood:
    """Exact likelihood ``log p(x0) = log N(x_1; 0, I) + Int_0^{pi/2} sin(phi) div F dphi``, on the closed interval.

    On a truncated one it is that of ``x`` at ``t_min``, with the standard normal at ``t_max``. Where neither end is in
    the interval, the variable is ``l = log(t / alpha)``, ``dx/dl = t^2 alpha F``, which is as smooth as ``t alpha F``.

    Args:
        field: ``F(x, t)``, differentiable in ``x``.
        x0: dequantised images in [-1, 1], or ``x`` at ``t_min`` (:class:`OdeStart`); float64 gives a float64 answer.
        trace: :func:`exact_trace` or ``hutchinson_trace(probe, ...)``.
        tolerance: of the adaptive solver, relative to ``1 + |x|`` and to one nat per dimension of the log-density.
        columns: estimates that the trace gives.
        interval: of the model.
    """
    dims = x0[0].numel()

    def derivative(place: float, state: Tensor) -> Tensor:
        time, factor = at(place)
        with torch.enable_grad():
            x = state[:, :dims].reshape_as(x0).detach().requires_grad_()
            # The ends themselves, not their roundings.
            time = min(max(time, interval.t_min), interval.t_max)
            t = torch.full((x.shape[0],), time, dtype=torch.float64, device=x.device)
            F = field(x, t)
            divergence = trace(F, x).view(len(x), -1)
        return factor * torch.cat([F.detach().flatten(1), divergence / dims], 1)

    at, place = (_at_logarithm, _logarithm) if interval.t_min > 0 and interval.t_max < 1 else (_at_angle, math.asin)
    start = torch.cat([x0.flatten(1), x0.new_zeros(x0.shape[0], columns)], 1)
    # The log-density is one number beside all those of x, whose mean would hide its error.
    parts = [dims] + [1] * columns
    end, nfe = dormand_prince(derivative, start, place(interval.t_min), place(interval.t_max), tolerance, parts)
    latent = end[:, :dims].reshape_as(x0)
    nll = normal_nll(latent)[:, None] - dims * end[:, dims:]
    return OdeLikelihood(nll[:, 0] if columns == 1 else nll, nfe, latent)


def _at_angle(phi: float) -> tuple[float, float]:
    """``t`` and ``dx/dphi / F``."""
    return math.sin(phi), math.sin(phi)


def _logarithm(t: float) -> float:
    """``log(t / alpha)``."""
    return math.log(t) - 0.5 * math.log((1 - t) * (1 + t))


def _at_logarithm(place: float) -> tuple[float, float]:
    """``t`` and ``dx/dl / F``."""
    t, alpha = 1 / math.hypot(1, math.exp(-place)), 1 / math.hypot(1, math.exp(place))
    return t, t * t * alpha


# Dormand & Prince 1980: nodes, stage weights; the last stage row is the fifth-order step, and ERROR its
# difference from the embedded fourth-order one.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dormand_prince(
    derivative: Callable[[float, Tensor], Tensor],
    y: Tensor,
    start: float,
    end: float,
    tolerance: float,
    parts: Sequence[int] | None = None,
) -> tuple[Tensor, int]:
    """Integrate ``dy/dt`` from ``start`` to ``end`` with one adaptive step for the whole batch.

    The step is accepted when in every row the root-mean-square error, relative to ``1 + |y|``, of each of its ``parts``
    is within ``tolerance``: so many columns one after another; None: all are one. Returns the state at ``end`` and the
    number of evaluations.

    Raises:
        FloatingPointError: the state is no longer finite, or the step has shrunk to nothing.
    """
    t, h, nfe = start, (end - start) / 20, 1
    first = derivative(t, y)
    while t < end:
        h = min(h, end - t)
        slopes, ahead = [first], y
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            ahead = y + h * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            # The last stage lies exactly on the end of the interval, not a rounding beyond it.
            slopes.append(derivative(end if node == 1.0 and h == end - t else t + node * h, ahead))
        nfe += len(slopes) - 1
        error = h * sum(w * k for w, k in zip(ERROR, slopes, strict=True) if w)
        size = tolerance * (1 + torch.maximum(y.abs(), ahead.abs()))
        squares = (error / size).square().split(list(parts or [y.shape[1]]), 1)
        ratio = torch.stack([part.mean(1) for part in squares]).max().sqrt().item()
        if not math.isfinite(ratio):
            raise FloatingPointError(f"the ODE's state is not finite at phi = {t:.4f}")
        if ratio <= 1:
            # First same as last: the last stage is the next step's first.
            t, y, first = (end if h == end - t else t + h), ahead, slopes[-1]
        h *= min(5.0, max(0.2, 0.9 * (ratio + 1e-10) ** -0.2))
        if h < 1e-9 * (end - start):
            raise FloatingPointError(f"the ODE's step has shrunk to nothing at phi = {t:.4f}")
    return y, nfe
