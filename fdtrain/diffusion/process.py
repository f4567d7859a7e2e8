"""The noising process ``x_t = alpha_t x0 + t eps`` on the closed interval [0, 1] (docs/method.md, section 1).

``sigma_t = t`` and ``alpha_t = sqrt(1 - t^2)``: variance preserving, no noise at all at ``t = 0``, no
signal at all at ``t = 1``. Times are float64, of shape ``(B,)``; images are ``(B, C, H, W)`` in any
floating type, which the result keeps.
"""

import torch
from torch import Tensor


def alpha(t: Tensor) -> Tensor:
    """Signal level ``sqrt(1 - t^2)``, written as a product so that no digit is lost near ``t = 1``."""
    return torch.sqrt((1 - t) * (1 + t))


def per_image(t: Tensor, x: Tensor) -> Tensor:
    """Shape ``(B,)`` values so that they multiply images ``x``, in the type of ``x``."""
    return t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def perturb(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """``x_t = alpha_t x0 + t eps``. ``alpha`` is taken in the type of ``t``, so pass ``t`` in float64."""
    return per_image(alpha(t), x0) * x0 + per_image(t, x0) * eps


def velocity(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """``v = alpha_t eps - t x0``, the derivative of ``x_t`` by the angle ``phi = arcsin t``."""
    return per_image(alpha(t), x0) * eps - per_image(t, x0) * x0
