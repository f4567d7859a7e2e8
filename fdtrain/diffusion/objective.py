"""The evidence lower bound on [0, 1], finite in value and in gradient (docs/method.md, section 3).

    -log p(x0) <= NELBO(x0) = (d/2) log(2 pi) + |x0|^2 / 2 + Int_0^1 E_eps[ t |F|^2 - 2 v . F ] dt      (nats)

In words: the negative log-likelihood under a standard normal, plus a correction that is nought for
``F = 0``. Nothing is cut off at either end. Sums over the dimensions of an image are in nats; bits/dim
are for the reader only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain.diffusion.predictors import Field
from fdtrain.diffusion.process import per_image, perturb, velocity


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


def correction(field: Field, x0: Tensor, eps: Tensor, t: Tensor, pdf: Tensor) -> Tensor:
    """One-sample estimate of the integral of each image, nats, shape ``(B,)``: the bound less :func:`normal_nll`.

    Args:
        field: ``F(x, t)``.
        x0: dequantised images in [-1, 1].
        eps: standard normal noise like ``x0``.
        t: times ``(B,)`` in float64, anywhere in [0, 1], ends included.
        pdf: density ``(B,)`` that ``t`` was drawn from; the estimate is unbiased for every density.
    """
    F = field(perturb(x0, eps, t), t)
    return integrand(F, velocity(x0, eps, t), t) / pdf.to(x0.dtype)


def nelbo(field: Field, x0: Tensor, eps: Tensor, t: Tensor, pdf: Tensor) -> Tensor:
    """One-sample estimate of the negative ELBO of each image, nats, shape ``(B,)``; as :func:`correction`."""
    return normal_nll(x0) + correction(field, x0, eps, t, pdf)


@dataclass(frozen=True)
class Loss:
    """One-sample estimates of each image, nats, shapes ``(B,)``."""

    train: Tensor
    """What is trained on."""
    nelbo: Tensor
    """The bound that is reported."""
    correction: Tensor
    """Its part that depends on the model: the bound less :func:`normal_nll`."""


def loss(field: Field, x0: Tensor, eps: Tensor, t: Tensor, pdf: Tensor) -> Loss:
    """What a step trains on, and the bound beside it; arguments as of :func:`correction`. Here they are the same."""
    part = correction(field, x0, eps, t, pdf)
    bound = normal_nll(x0) + part
    return Loss(train=bound, nelbo=bound, correction=part)


def dequantise(levels_image: Tensor, u: Tensor, levels: int) -> Tensor:
    """Uniform dequantisation ``2 (i + u) / levels - 1`` of integer images ``i`` in ``[0, levels)``, in [-1, 1]."""
    return (levels_image.to(u.dtype) + u) * (2 / levels) - 1


def quantise(x: Tensor, levels: int) -> Tensor:
    """Integer levels (uint8) of dequantised images: the inverse of :func:`dequantise`, clipped to the range."""
    return ((x + 1) * (levels / 2)).floor().clamp(0, levels - 1).to(torch.uint8)


def bits_per_dim(nats: Tensor | float, dims: int, levels: int):
    """``nats / (d ln 2) + log2(levels / 2)``: bits per dimension of the discrete image (7 added for 8-bit images)."""
    return nats / (dims * math.log(2)) + math.log2(levels / 2)
