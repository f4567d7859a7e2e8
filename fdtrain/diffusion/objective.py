"""The evidence lower bound on [0, 1], finite in value and in gradient (docs/method.md, section 3).

    -log p(x0) <= NELBO(x0) = (d/2) log(2 pi) + |x0|^2 / 2 + Int_0^1 E_eps[ t |F|^2 - 2 v . F ] dt      (nats)

In words: the negative log-likelihood under a standard normal, plus a correction that is zero for
``F = 0``. Nothing is cut off at either end. Sums over the dimensions of an image are in nats; bits/dim
are for the reader only.

A formulation that is singular at an end has the bound of a truncated interval instead (docs/method.md, 'Other
formulations'), a :class:`Bound`:

    NELBO = KL(q(x_{t_max} | x0) || N(0, I)) + Int_{t_min}^{t_max} E|v - t F|^2 / t dt + E[-log p(x0 | x_{t_min})]
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fdtrain.diffusion.decoders import discrete_decoder, gaussian_decoder
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.predictors import Field
from fdtrain.diffusion.process import per_image, perturb, velocity
from fdtrain.diffusion.weighting import Weighting

Nats = TypeVar("Nats", Tensor, float)


def normal_nll(x: Tensor) -> Tensor:
    """``-log N(x; 0, I)`` of each image, nats, shape ``(B,)``."""
    x = x.flatten(1)
    return 0.5 * x.square().sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)


def integrand(F: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """``t |F|^2 - 2 v . F`` of each image, nats per unit of ``t``, shape ``(B,)``.

    Its gradient in ``F`` is that of ``|v - t F|^2 / t``, whose value diverges at ``t = 0`` while this
    one does not.
    """
    return (F * (per_image(t, F) * F - 2 * v)).flatten(1).sum(1)


def residual(F: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """``|v - t F|^2`` of each image, shape ``(B,)``."""
    return (v - per_image(t, F) * F).square().flatten(1).sum(1)


DECODERS = ("gaussian", "discrete")


@dataclass(frozen=True)
class Bound:
    """Which bound: of which interval, and of which images.

    ``decoder`` is what a truncated interval ends in: ``gaussian``, ``N(x / alpha, (t_min / alpha)^2 I)`` of dequantised
    images, or ``discrete``, a softmax over the levels, of images at the centres of their bins. On the closed interval
    there is nothing to decode.
    """

    levels: int = 256
    interval: Interval = CLOSED
    decoder: str = "gaussian"

    @property
    def discrete(self) -> bool:
        """Whether images are at the centres of their bins, and the bound is one of probabilities."""
        return self.decoder == "discrete"

    @property
    def dequantisation(self) -> str:
        """Of the images that it is computed on."""
        return "none (bin centres)" if self.discrete else "uniform"

    @property
    def ode_dequantisation(self) -> str:
        """Of those that the ODE's likelihood is computed on."""
        return "truncated normal" if self.discrete else "uniform"

    def describe(self) -> str:
        """Interval and decoder, for a table."""
        if self.interval == CLOSED:
            return "closed interval"
        decoder = f", {self.decoder} decoder" if self.interval.t_min else ""
        return f"[{self.interval.t_min:.6g}, {self.interval.t_max:.6g}]{decoder}"

    def ends(self) -> dict[str, float]:
        """The interval for a log of numbers, where it is not the closed one."""
        return {} if self.interval == CLOSED else {"t_min": self.interval.t_min, "t_max": self.interval.t_max}

    def images(self, levels_image: Tensor, u: Tensor) -> Tensor:
        """Integer images as ``x0``, dequantised by uniform ``u`` if at all."""
        return dequantise(levels_image, torch.full_like(u, 0.5) if self.discrete else u, self.levels)

    def outside(self, x0: Tensor) -> Tensor:
        """What no model changes, of each image, nats, ``(B,)``: on the closed interval :func:`normal_nll`."""
        if self.interval == CLOSED:
            return normal_nll(x0)
        dims, squares = x0[0].numel(), x0.square().flatten(1).sum(1)
        low, high = self.interval.t_min, self.interval.t_max
        total = torch.zeros_like(squares)
        if high < 1:
            signal = (1 - high) * (1 + high)
            total = total + 0.5 * (signal * squares - dims * (signal + 2 * math.log(high)))
        if low == 0:
            # No decoder: the closed form's integral of |v|^2 / t stops at t_max.
            return (
                total
                + 0.5 * high * high * (squares - dims)
                + dims * (0.5 * math.log(2 * math.pi * math.e) + math.log(high))
            )
        if self.discrete:
            table = discrete_decoder(self.levels, low).to(x0.device)
            return total + table[quantise(x0, self.levels).long()].flatten(1).sum(1).to(x0.dtype)
        return total + gaussian_decoder(dims, low)

    def correction(self, field: Field, x0: Tensor, eps: Tensor, t: Tensor, pdf: Tensor) -> Tensor:
        """One-sample estimate of what does depend on the model, of each image, nats, ``(B,)``.

        Args:
            field: ``F(x, t)``.
            x0: images in [-1, 1], of :meth:`images`.
            eps: standard normal noise like ``x0``.
            t: times ``(B,)`` in float64, anywhere in the interval, ends included.
            pdf: density ``(B,)`` that ``t`` was drawn from; the estimate is unbiased for every density.
        """
        return self._estimate(field(perturb(x0, eps, t), t), velocity(x0, eps, t), t, pdf, x0)

    def _estimate(self, F: Tensor, v: Tensor, t: Tensor, pdf: Tensor, x0: Tensor) -> Tensor:
        if self.interval.t_min == 0:
            return integrand(F, v, t) / pdf.to(F.dtype)
        value = residual(F, v, t)
        if not self.discrete:
            value = value - self._control(v, t, x0)
        return value / (t * pdf).to(F.dtype)

    def _control(self, v: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """A control variate: ``|v|^2`` less its mean over the noise, where ``t`` is below one level of the images.

        There no field tells ``v`` of a dequantised image, and ``|eps|^2 / t`` alone would make most of the variance of
        a truncated bound. Its mean is zero and no model changes it, so it changes neither the bound nor the gradient.
        """
        squares = x0.square().flatten(1).sum(1)
        mean = (1 - t * t).to(v.dtype) * x0[0].numel() + (t * t).to(v.dtype) * squares
        return (1 / (1 + (t * self.levels).square())).to(v.dtype) * (v.square().flatten(1).sum(1) - mean)

    def nelbo(self, field: Field, x0: Tensor, eps: Tensor, t: Tensor, pdf: Tensor) -> Tensor:
        """One-sample estimate of the negative ELBO of each image, nats, shape ``(B,)``; as :meth:`correction`."""
        return self.outside(x0) + self.correction(field, x0, eps, t, pdf)

    def bits_per_dim(self, nats: Nats, dims: int) -> Nats:
        """Bits per dimension of the discrete image."""
        return bits_per_dim(nats, dims, 2 if self.discrete else self.levels)

    def loss(
        self, field: Field, x0: Tensor, eps: Tensor, t: Tensor, pdf: Tensor, weighting: Weighting | None = None
    ) -> "Loss":
        """What a step trains on, the bound itself or the residual by its ``weighting``, and the bound beside it."""
        F, v = field(perturb(x0, eps, t), t), velocity(x0, eps, t)
        part = self._estimate(F, v, t, pdf, x0)
        bound = self.outside(x0) + part
        if weighting is None:
            return Loss(train=bound, nelbo=bound, correction=part)
        return Loss(weighting(t).to(F.dtype) * residual(F, v, t), bound.detach(), part.detach())


@dataclass(frozen=True)
class Loss:
    """One-sample estimates of each image, shapes ``(B,)``; the bound's in nats."""

    train: Tensor
    """What is trained on."""
    nelbo: Tensor
    """The bound that is reported."""
    correction: Tensor
    """Its part that depends on the model."""


def dequantise(levels_image: Tensor, u: Tensor, levels: int) -> Tensor:
    """Uniform dequantisation ``2 (i + u) / levels - 1`` of integer images ``i`` in ``[0, levels)``, in [-1, 1]."""
    return (levels_image.to(u.dtype) + u) * (2 / levels) - 1


def quantise(x: Tensor, levels: int) -> Tensor:
    """Integer levels (uint8) of dequantised images: the inverse of :func:`dequantise`, clipped to the range."""
    return ((x + 1) * (levels / 2)).floor().clamp(0, levels - 1).to(torch.uint8)


def bits_per_dim(nats: Nats, dims: int, levels: int) -> Nats:
    """``nats / (d ln 2) + log2(levels / 2)``: bits per dimension of the discrete image (7 added for 8-bit images)."""
    return nats / (dims * math.log(2)) + math.log2(levels / 2)
