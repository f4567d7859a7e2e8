"""An adaptive Runge-Kutta method that solves every row of a batch by steps of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

# Bogacki & Shampine 1989: nodes, stage weights; the last stage row is the third-order step, and ERROR its difference
# from the embedded second-order one.
NODES = (0.0, 1 / 2, 3 / 4, 1.0)
STAGES = ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9))
ERROR = (-5 / 72, 1 / 12, 1 / 9, -1 / 8)


def bogacki_shampine(
    derivative: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    start: float,
    end: float,
    size: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Integrate ``dy/du`` from ``start`` to ``end``; rows are evaluated together, each at its own ``u``.

    A row's result and its evaluations do not depend on the others, and a row that is finished is not evaluated again.
    The length of a step follows from the errors of the last two (a PI controller: Hairer & Wanner 1996, section IV.2),
    which saves most of the rejected ones. The order is low and the weights nearly equal because networks are rough in
    time (docs/method.md, section 6).

    Args:
        derivative: ``dy/du`` at places ``(n,)`` in float64 of states ``(n, columns)``; the third argument are their
            rows, ``(n,)``.
        y: states at ``start``, ``(B, columns)``.
        size: of the error ``(n, columns)`` of steps to places ``(n,)``, in units of what is tolerated, ``(n,)``: a
            step is accepted up to 1.

    Returns:
        The states at ``end``, and the evaluations of each row, ``(B,)`` int64.

    Raises:
        FloatingPointError: a state is no longer finite, or a step has shrunk to nothing.
    """
    rows, result = torch.arange(len(y), device=y.device), torch.empty_like(y)
    u = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
    h, before, nfe = torch.full_like(u, (end - start) / 20), torch.ones_like(u), torch.ones_like(rows)
    first = derivative(u, y, rows)
    while len(rows):
        last = h >= end - u
        h = torch.where(last, end - u, h)
        length, slopes, ahead, place = h.to(y.dtype)[:, None], [first], y, u
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            ahead = y + length * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            # The last stage lies exactly on the end of the interval, not a rounding beyond it.
            place = torch.where(last, end, u + h) if node == 1.0 else u + node * h
            slopes.append(derivative(place, ahead, rows))
        nfe[rows] += len(slopes) - 1
        ratio = size(place, length * sum(w * k for w, k in zip(ERROR, slopes, strict=True) if w)).double()
        if not torch.isfinite(ratio).all():
            raise FloatingPointError(f"the ODE's state is not finite at u = {u[~torch.isfinite(ratio)][0]:.4f}")
        accepted = ratio <= 1
        # First same as last: the last stage is the next step's first.
        u, y = torch.where(accepted, place, u), torch.where(accepted[:, None], ahead, y)
        first = torch.where(accepted[:, None], slopes[-1], first)
        factor = torch.where(accepted, (ratio + 1e-10) ** (-0.7 / 3) * (before + 1e-4) ** (0.4 / 3), ratio ** (-1 / 3))
        before = torch.where(accepted, ratio, before)
        h = h * (0.9 * factor).clamp(0.2, 5.0)
        done = accepted & last
        stuck = ~done & (h < 1e-9 * (end - start))
        if stuck.any():
            raise FloatingPointError(f"the ODE's step has shrunk to nothing at u = {u[stuck][0]:.4f}")
        result[rows[done]] = y[done]
        rows, u, h, before, y, first = (x[~done] for x in (rows, u, h, before, y, first))
    return result, nfe
