"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum whose matrices are made orthogonal.

Beside it AdamW steps what is no matrix of the network's inside.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fdtrain.checkpoint.fragments import MOMENTUM
from fdtrain.training.matrix_exchange import MatrixExchange

BETA = 0.95
"""Of the momentum."""
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""The odd polynomial ``a x + b x^3 + c x^5``, and how often it is applied: singular values from 0.01 to 1
come between 0.68 and 1.14."""


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About the nearest orthogonal matrix, ``U V^T`` of ``matrix = U S V^T``, by Newton-Schulz's iteration in
    ``dtype``."""
    a, b, c = QUINTIC
    x = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    # Before the range of numbers narrows.
    x = (x / x.norm().clamp(min=1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.size(0) <= matrix.size(1) else x.T


class Muon(torch.optim.AdamW):
    """Muon for ``matrices``, fused AdamW for the ``rest``; a set ``found_inf`` leaves everything as it is.

    With gradient ``g``: ``m <- 0.95 m + 0.05 g``, then ``w <- (1 - lr decay) w - lr max(1, rows / columns)^(1/2)
    orthogonal(0.95 m + 0.05 g)``. A convolution is a matrix ``(out, in k k)``.

    Args:
        lr: of AdamW, and what ``muon_lr`` is relative to.
        dtype: of the iteration.
        adamw: the settings of AdamW; ``weight_decay`` is that of the matrices too.
    """

    found_inf: Tensor
    exchanges: dict[Tensor, MatrixExchange]
    """By which the matrices in a tensor that this steps come together; to be set before the first step."""

    def __init__(
        self,
        matrices: Sequence[Tensor],
        rest: Sequence[Tensor],
        lr: float,
        muon_lr: float,
        dtype: torch.dtype,
        **adamw: Any,
    ):
        muon = {"params": list(matrices), "muon": True, "relative_lr": muon_lr / lr}
        super().__init__([muon, {"params": list(rest), "muon": False}], lr=lr, fused=True, **adamw)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        # 1, or 0 in a step that is skipped: then nothing below has an effect.
        passed = 1 - self.found_inf
        for p in group["params"]:
            gradient, state = torch.where(passed > 0, p.grad, 0.0), self.state[p]
            if not state:
                state[MOMENTUM] = torch.zeros_like(p)
            momentum = state[MOMENTUM].lerp_(gradient, (1 - BETA) * passed)
            update = gradient.lerp(momentum, BETA).flatten()
            self.exchanges[p].apply(self._scaled, update)
            p.mul_(1 - group["lr"] * group["weight_decay"] * passed)
            p.addcmul_(update.view_as(p), passed, value=-group["lr"])

    def _scaled(self, matrix: Tensor) -> Tensor:
        return orthogonal(matrix, self.dtype) * math.sqrt(max(1.0, matrix.size(0) / matrix.size(1)))
