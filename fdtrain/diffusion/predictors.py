"""From the network's output ``f`` to the field ``F``, and from ``F`` to every quantity with a name.

    eps_hat = t x + t alpha F,   x0_hat = alpha x - t^2 F,   v_hat = t F,   score = -x - alpha F

(docs/method.md, section 2). ``F`` is finite on the whole of [0, 1]: nothing here divides by ``t`` or
``alpha``. Shapes: ``t`` is ``(B,)``, images are ``(B, C, H, W)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fdtrain.diffusion.process import alpha, per_image

Field = Callable[[Tensor, Tensor], Tensor]
"""``F(x, t)``: images and times ``(B,)`` in float64 to a tensor like ``x``."""


@dataclass(frozen=True)
class Interval:
    """The times on which a predictor's field is finite, a part of [0, 1]."""

    t_min: float = 0.0
    t_max: float = 1.0


CLOSED = Interval()
"""All of [0, 1], both ends included: nothing is truncated."""


class Predictor(Protocol):
    """How a network is asked, and how its output is read: what tells one formulation of diffusion from another.

    Every member is seen as a field ``F`` of the one process and its time ``t`` (docs/method.md, section 2), so
    objective, likelihood and solvers need not know which one it is.
    """

    @property
    def interval(self) -> Interval:
        """Where ``field`` is finite."""
        ...

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given: its image ``c_in(t) x`` like ``x``, and its time ``c_noise(t)``, ``(B,)``."""
        ...

    def field(self, f: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``F`` in float32 or wider from the network's output ``f`` at ``x``, which may be in half precision."""
        ...


@dataclass(frozen=True)
class FieldPredictor:
    """FullDiffusion's family: the output is the field up to a factor, ``F = scaling(t) f``, finite on all of [0, 1]."""

    scaling: Callable[[Tensor], Tensor]
    interval: Interval = CLOSED

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network sees ``x`` and ``t`` as they are."""
        return x, t

    def field(self, f: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``F = scaling(t) f``."""
        f = f if f.dtype == torch.float64 else f.float()
        return per_image(self.scaling(t), f) * f


PREDICTORS: dict[str, Callable[[float], Predictor]] = {
    # F = f.
    "plain": lambda scale: FieldPredictor(torch.ones_like),
    # F = f / sqrt(t^2 + s^2): the network's target then has about unit size at every t. Not a
    # truncation, since the bound holds for every F, whatever s.
    "bounded": lambda scale: FieldPredictor(lambda t: torch.rsqrt(t * t + scale * scale)),
    # F = alpha f, that is eps_hat = t x + t (1 - t^2) f: the drift of the reverse SDE is 2 t f.
    "alpha": lambda scale: FieldPredictor(alpha),
}
"""By name, each made with the ``s`` of ``bounded``, about the finest scale of the data (1 / levels)."""


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
