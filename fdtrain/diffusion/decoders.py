"""What lies between a truncated interval's first time and the discrete image: decoders and dequantisations.

With ``x / alpha = x0 + (t / alpha) eps`` at ``t = t_min`` (docs/method.md, 'Other formulations'). Levels are seen at
the centres of their bins, ``2 (k + 1/2) / L - 1``. All in float64 and nats.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

DEVIATIONS = torch.linspace(-9, 9, 721, dtype=torch.float64)
"""Nodes of the trapezoidal rule for normal means: its error is that of rounding for what is analytic."""


def bin_centres(levels: int) -> Tensor:
    """The images ``x0`` of the levels, shape ``(levels,)``."""
    return (2 * torch.arange(levels, dtype=torch.float64) + 1) / levels - 1


def gaussian_decoder(dims: int, t_min: float) -> float:
    """``E[-log N(x0; x / alpha, (t / alpha)^2 I)]`` at ``t_min``: the same for every dequantised image."""
    return dims * (0.5 * (1 + math.log(2 * math.pi)) + math.log(t_min) - 0.5 * math.log1p(-t_min * t_min))


@lru_cache(maxsize=16)
def discrete_decoder(levels: int, t_min: float) -> Tensor:
    """``E[-log P(k | x)]`` of each level ``k``, ``(levels,)``: VDM's softmax over the levels (Kingma et al. 2021).

    ``P(k | x)`` is proportional to ``N(centre_k; x / alpha, (t / alpha)^2)``. It belongs to one dimension and one
    level, so its mean over the noise is a table.
    """
    spread, centres = t_min / math.sqrt((1 - t_min) * (1 + t_min)), bin_centres(levels)
    weights = torch.exp(-0.5 * DEVIATIONS.square())
    weights = weights / weights.sum()
    table = torch.empty(levels, dtype=torch.float64)
    for k, centre in enumerate(centres):
        seen = centre + spread * DEVIATIONS
        logits = -0.5 * ((seen[:, None] - centres) / spread).square()
        table[k] = -(weights * torch.log_softmax(logits, 1)[:, k]).sum()
    return table


def truncated_normal(u: Tensor, levels: int, t_min: float) -> Tensor:
    """Normal noise cut to half a bin, ``|eps| <= alpha / (levels t)``, from uniform ``u`` (Zheng et al. 2023)."""
    cut = _cut(levels, t_min)
    within = math.erf(cut / math.sqrt(2))
    noise = math.sqrt(2) * torch.special.erfinv((2 * u.double() - 1) * within)
    return noise.clamp(-cut, cut).to(u.dtype)


def truncated_normal_entropy(levels: int, t_min: float) -> float:
    """``-E[log q]`` of ``t eps`` for :func:`truncated_normal`, nats per dimension."""
    cut = _cut(levels, t_min)
    within = math.erf(cut / math.sqrt(2))
    tail = cut * math.exp(-0.5 * cut * cut) / (math.sqrt(2 * math.pi) * within)
    return 0.5 * (1 + math.log(2 * math.pi * t_min * t_min)) + math.log(within) - tail


def _cut(levels: int, t_min: float) -> float:
    return math.sqrt((1 - t_min) * (1 + t_min)) / (levels * t_min)
