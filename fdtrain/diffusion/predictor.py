"""From the network's output ``f`` to the field ``F``, and from ``F`` to every quantity with a name.

    eps_hat = t x + t alpha F,   x0_hat = alpha x - t^2 F,   v_hat = t F,   score = -x - alpha F

(docs/method.md, section 2). ``F`` is finite on the whole of [0, 1]: nothing here divides by ``t`` or
``alpha``. Shapes: ``t`` is ``(B,)``, images are ``(B, C, H, W)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain.diffusion.process import alpha, per_image

Field = Callable[[Tensor, Tensor], Tensor]
"""``F(x, t)``: images and times ``(B,)`` in float64 to a tensor like ``x``."""

SCALINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    # F = f.
    "plain": lambda t, scale: torch.ones_like(t),
    # F = f / sqrt(t^2 + s^2): the network's target then has about unit size at every t. Not a
    # truncation, since the bound holds for every F, whatever s.
    "bounded": lambda t, scale: torch.rsqrt(t * t + scale * scale),
    # F = alpha f, that is eps_hat = t x + t (1 - t^2) f: the drift of the reverse SDE is 2 t f.
    "alpha": lambda t, scale: alpha(t),
}


@dataclass(frozen=True)
class Predictor:
    """One member of the noise-predictor family.

    ``scale`` is the ``s`` of ``bounded``, about the finest scale of the data (1 / levels); the other
    kinds do not read it.
    """

    kind: str = "bounded"
    scale: float = 1 / 256

    def field(self, f: Tensor, t: Tensor) -> Tensor:
        """``F`` in float32 or wider from the network's output ``f``, which may be in half precision."""
        f = f if f.dtype == torch.float64 else f.float()
        return per_image(SCALINGS[self.kind](t, self.scale), f) * f


def eps_hat(F: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Predicted noise ``t x + t alpha F``."""
    return per_image(t, x) * x + per_image(t * alpha(t), x) * F


def x0_hat(F: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Predicted image ``alpha x - t^2 F``: equal to ``x`` at ``t = 0`` and to ``-F`` at ``t = 1``."""
    return per_image(alpha(t), x) * x - per_image(t * t, x) * F


def v_hat(F: Tensor, t: Tensor) -> Tensor:
    """Predicted velocity ``t F``."""
    return per_image(t, F) * F


def score(F: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Predicted score ``-x - alpha F``, the gradient of ``log p_t``."""
    return -x - per_image(alpha(t), x) * F
