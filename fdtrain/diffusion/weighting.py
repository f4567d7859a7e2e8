"""Published training losses as weights ``w(t)`` of one residual, ``w(t) |v - t F|^2`` (docs/method.md).

With ``eps - eps_hat = alpha (v - t F)`` and ``x0_hat - x0 = t (v - t F)``, the mean squared error of each target is
this residual times a function of ``t``. The bound's own weight is ``1 / (t q)``, with the density of the draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fdtrain.diffusion.predictors import EDM_DEVIATION
from fdtrain.diffusion.process import alpha

MIN_SNR = 5.0
"""``gamma`` of Hang et al. 2023."""

Weighting = Callable[[Tensor], Tensor]
"""``w`` of times ``(B,)`` in float64."""

WEIGHTINGS: dict[str, Weighting | None] = {
    # The evidence lower bound, whatever the density (ScoreFlow, VDM, i-DODE; the default).
    "bound": None,
    # |eps - eps_hat|^2 (Ho et al. 2020, L_simple).
    "eps": lambda t: 1 - t * t,
    # |x0 - x0_hat|^2.
    "x0": lambda t: t * t,
    # |v - v_hat|^2 (Salimans & Ho 2022).
    "v": torch.ones_like,
    # |(eps - x0) - u_hat|^2 (Lipman et al. 2023).
    "flow": lambda t: (alpha(t) + t).square(),
    # EDM's lambda(sg) = (sg^2 + sd^2) / (sg sd)^2 times |x0 - x0_hat|^2 (Karras et al. 2022).
    "edm": lambda t: (t * t + EDM_DEVIATION**2 * (1 - t * t)) / EDM_DEVIATION**2,
    # min(SNR, 5) |x0 - x0_hat|^2 (Hang et al. 2023).
    "min_snr": lambda t: torch.minimum(1 - t * t, MIN_SNR * t * t),
}
"""By name; None: the bound."""
