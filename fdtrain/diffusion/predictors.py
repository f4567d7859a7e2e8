"""From the network's output ``f`` to the field ``F``, and from ``F`` to every quantity with a name.

    eps_hat = t x + t alpha F,   x0_hat = alpha x - t^2 F,   v_hat = t F,   score = -x - alpha F

(docs/method.md, section 2). With ``plain``, ``bounded`` and ``alpha`` ``F`` is finite on the whole of [0, 1]; the
others divide by ``t`` or ``alpha`` and need a truncated interval. Shapes: ``t`` is ``(B,)``, images are
``(B, C, H, W)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fdtrain.diffusion.clocks import CLOCKS, VE_RANGE
from fdtrain.diffusion.process import alpha, per_image

Field = Callable[[Tensor, Tensor], Tensor]
"""``F(x, t)``: images and times ``(B,)`` in float64 to a tensor like ``x``."""


EDM_DEVIATION = 0.5
"""``sigma_data`` of Karras et al. 2022."""

Coefficient = Callable[[Tensor], Tensor]
"""A function of times ``(B,)`` in float64."""


@dataclass(frozen=True)
class Predictor:
    """How a network ``f`` is asked and read: ``F = c_out(t) f(c_in(t) x, c_noise(t)) + c_skip(t) x``.

    This is what tells one formulation of diffusion from another (the names are those of Karras et al. 2022). Every
    member is seen as a field ``F`` of the one process and its time ``t`` (docs/method.md, section 2), so objective,
    likelihood and solvers need not know which one it is. None stands for no ``x`` (``c_skip``), ``x`` and ``t`` as
    they are.
    """

    c_out: Coefficient
    c_skip: Coefficient | None = None
    c_in: Coefficient | None = None
    c_noise: Coefficient | None = None

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given: its image ``c_in(t) x`` like ``x``, and its time ``c_noise(t)``, ``(B,)``."""
        image = x if self.c_in is None else per_image(self.c_in(t), x) * x
        return image, t if self.c_noise is None else self.c_noise(t)

    def field(self, f: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``F`` in float32 or wider from the network's output ``f`` at ``x``, which may be in half precision."""
        f = f if f.dtype == torch.float64 else f.float()
        F = per_image(self.c_out(t), f) * f
        return F if self.c_skip is None else F + per_image(self.c_skip(t), f) * x

    def finite(self, t: float) -> bool:
        """Whether every coefficient is finite at ``t``."""
        at = torch.tensor([t], dtype=torch.float64)
        coefficients = filter(None, (self.c_out, self.c_skip, self.c_in, self.c_noise))
        return all(bool(torch.isfinite(c(at)).all()) for c in coefficients)


def _edm_variance(t: Tensor) -> Tensor:
    """``t^2 + sd^2 alpha^2``: the variance of ``alpha x0 + t eps`` for data of EDM's deviation."""
    return t * t + EDM_DEVIATION**2 * (1 - t * t)


INPUTS: dict[str, Coefficient | None] = {
    # The variance preserving x_t.
    "vp": None,
    # z = x / alpha = x0 + (t / alpha) eps.
    "ve": lambda t: 1 / alpha(t),
    # z = x / (alpha + t), the flow's (1 - tau) x0 + tau eps.
    "flow": lambda t: 1 / (alpha(t) + t),
    # Of unit variance for data of EDM's deviation.
    "edm": lambda t: torch.rsqrt(_edm_variance(t)),
    # z = sqrt(e) x0 + (1 - e) eps of the sub-VP process: x sqrt(e) / alpha.
    "sub_vp": lambda t: 2 / (t + torch.sqrt(4 - 3 * t * t)),
}
"""``c_in``: which rescaling of ``x_t`` the network is given."""

TIMES: dict[str, Coefficient | None] = {
    "t": None,
    # A finite log-SNR, for embeddings of 1000 times what they are given: eight periods of the fastest sine. A network
    # of t itself has 160, and is as rough in t as they are (ours, measured: docs/networks.md).
    "asinh": lambda t: 0.05 * torch.asinh(512 * t) / math.asinh(512),
    # EDM's ln(sigma) / 4, with sigma = t / alpha.
    "log_sigma": lambda t: 0.25 * torch.log(t / alpha(t)),
    **{name: clock.cdf for name, clock in CLOCKS.items() if name != "ve"},
    # Of score_sde's networks: 999 tau, for embeddings of 1000 times what they are given.
    "score_sde_vp": lambda t: 0.999 * CLOCKS["linear_vp"].cdf(t),
    "score_sde_sub_vp": lambda t: 0.999 * CLOCKS["sub_vp"].cdf(t),
    # ln(sigma / sigma_min), for Fourier embeddings.
    "score_sde_ve": lambda t: math.log(VE_RANGE[1] / VE_RANGE[0]) * CLOCKS["ve"].cdf(t),
    # Of EDM's networks: log_sigma, for embeddings of 1000 times what they are given.
    "edm": lambda t: 0.25e-3 * torch.log(t / alpha(t)),
}
"""``c_noise``: which time the network is given."""

PREDICTORS: dict[str, Callable[[float], Predictor]] = {
    # F = f.
    "plain": lambda scale: Predictor(torch.ones_like),
    # F = f / sqrt(t^2 + s^2): the network's target then has about unit size at every t. Not a
    # truncation, since the bound holds for every F, whatever s.
    "bounded": lambda scale: Predictor(lambda t: torch.rsqrt(t * t + scale * scale)),
    # F = alpha f, that is eps_hat = t x + t (1 - t^2) f: the drift of the reverse SDE is 2 t f.
    "alpha": lambda scale: Predictor(alpha),
    # f = eps_hat (Ho et al. 2020).
    "eps": lambda scale: Predictor(lambda t: 1 / (t * alpha(t)), lambda t: -1 / alpha(t)),
    # f = x0_hat.
    "x0": lambda scale: Predictor(lambda t: -1 / (t * t), lambda t: alpha(t) / (t * t)),
    # f = v_hat (Salimans & Ho 2022).
    "v": lambda scale: Predictor(lambda t: 1 / t),
    # f = eps_hat - x0_hat, the velocity of (1 - tau) x0 + tau eps, of which the network sees z.
    "flow": lambda scale: Predictor(
        lambda t: 1 / (t * (alpha(t) + t)), lambda t: (alpha(t) - t) / (t * (alpha(t) + t)), INPUTS["flow"]
    ),
    # f = t score.
    "score": lambda scale: Predictor(lambda t: -1 / (t * alpha(t)), lambda t: -1 / alpha(t)),
    # EDM's F_theta: x0_hat is D of Karras et al. 2022, table 1, at sigma = t / alpha.
    "edm": lambda scale: Predictor(
        lambda t: -EDM_DEVIATION / (t * torch.sqrt(_edm_variance(t))),
        lambda t: alpha(t) * (1 - EDM_DEVIATION**2) / _edm_variance(t),
        INPUTS["edm"],
        TIMES["log_sigma"],
    ),
}
"""By name, each made with the ``s`` of ``bounded``, about the finest scale of the data (1 / levels)."""


def make_predictor(
    name: str,
    scale: float,
    network_input: str | None = None,
    network_time: str | None = None,
    network_skip: bool = False,
) -> Predictor:
    """The predictor of a name in :data:`PREDICTORS`, its network asked as it says or as :data:`INPUTS` and
    :data:`TIMES` do; with ``network_skip``, the image that the network is given is added to its output, as the
    networks of VDM and i-DODE do (Kingma et al. 2021; Zheng et al. 2023)."""
    predictor = PREDICTORS[name](scale)
    if network_input is not None:
        predictor = replace(predictor, c_in=INPUTS[network_input])
    if network_time is not None:
        predictor = replace(predictor, c_noise=TIMES[network_time])
    return _with_skip(predictor) if network_skip else predictor


def _with_skip(p: Predictor) -> Predictor:
    """``f + c_in x`` in place of ``f``: ``c_skip + c_out c_in`` in place of ``c_skip``."""

    def c_skip(t: Tensor) -> Tensor:
        added = p.c_out(t) if p.c_in is None else p.c_out(t) * p.c_in(t)
        return added if p.c_skip is None else p.c_skip(t) + added

    return replace(p, c_skip=c_skip)


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
