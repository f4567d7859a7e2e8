"""Published solvers to compare with, written in this process: each a function from a grid of times to its steps.

``l = log(alpha / t)`` is half the log-SNR, ``h = l_t - l_s`` and ``D`` the predicted image. ``l`` is infinite at both
ends of the closed interval: an evaluation at 1 says nothing of a slope in ``l``, and no polynomial in ``l`` reaches 0.
There the formulas' own limits are taken, which are of first order (DDIM, ancestral sampling).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fdtrain.diffusion.solvers.step import Step, alpha


def _h(s: float, t: float) -> float:
    """``l_t - l_s``; infinite from 1 and to 0."""
    return math.log(alpha(t) * s / (t * alpha(s))) if s < 1 and t > 0 else math.inf


def _ratio(s: float, t: float) -> float:
    """``e^-h``, the ratio of ``sigma = t / alpha``: 0 from 1 and to 0."""
    return alpha(s) * t / (alpha(t) * s)


def heun_edm(times: Sequence[float]) -> list[Step]:
    """Heun's method in ``sigma = t / alpha`` on ``x / alpha``, as EDM has it (Karras et al. 2022, algorithm 1).

    With ``r = sigma_t / sigma_s``, the corrected ``x_t = (t/s) x_s + alpha_t (1 - r) ((2 - 1/r) D_s + D_t / r) / 2``;
    Euler's step, ``(t/s) x_s + alpha_t (1 - r) D_s``, is taken to 0, as there, and from 1, where ``r`` is 0. At the
    corrected ``x_t`` it evaluates once more: a step from ``t`` to ``t``.
    """
    steps = []
    for s, t in pairwise(times):
        r = _ratio(s, t)
        rest = alpha(t) * (1 - r)
        if r > 0:
            steps.append(Step(s, t, t / s, 0.0, (rest,), (0.5 * rest / r, 0.5 * rest * (2 - 1 / r))))
            steps.append(Step(t, t, 1.0, 0.0, ()))
        else:
            steps.append(Step(s, t, t / s, 0.0, (rest,)))
    return steps


def dpmpp2m(times: Sequence[float]) -> list[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    ``x_t = (t/s) x_s + (alpha_t - alpha_s t/s) (D_s + (D_s - D_r) (l_t - l_s) / (2 (l_s - l_r)))``.
    """
    return [
        Step(s, t, t / s, 0.0, _two(alpha(t) - alpha(s) * t / s, r, s, t))
        for r, s, t in zip([None, *times], times, times[1:])
    ]


def dpmpp2m_sde(times: Sequence[float]) -> list[Step]:
    """DPM-Solver++(2M) for the SDE (Lu et al. 2022; diffusers' ``sde-dpmsolver++``, ``midpoint``).

    ``x_t = (t/s) e^-h x_s + alpha_t (1 - e^-2h) (D_s + (D_s - D_r) h / (2 (l_s - l_r))) + t sqrt(1 - e^-2h) z``.
    """
    steps = []
    for r, s, t in zip([None, *times], times, times[1:]):
        e = _ratio(s, t)
        spread = (s - t) * (s + t) / (alpha(t) * s) ** 2  # 1 - e^-2h
        steps.append(Step(s, t, t / s * e, t * math.sqrt(spread), _two(alpha(t) * spread, r, s, t)))
    return steps


def unipc2(times: Sequence[float]) -> list[Step]:
    """UniPC-2 (Zhao et al. 2023), data prediction, ``B(h) = e^-h - 1`` (``bh2``), multistep.

    ``x_t = (t/s) x_s - alpha_t (e^-h - 1) D_s - alpha_t B sum_k a_k (D_k - D_s) / r_k``, ``r_k = (l_k - l_s) / h``
    of past evaluations and, in the corrector, of the new one, whose ``r`` is 1; ``a`` solves ``sum_k a_k r_k^(j-1) =
    j! (-h) phi_(j+1)(-h) / B`` (its theorem 3.1), but is 1/2 when it is one. As in the authors' code the last step is
    of order 1 and is not corrected.
    """
    steps = []
    for i, (s, t) in enumerate(pairwise(times)):
        # Of an evaluation at 1, r is infinite, and its difference over r is zero.
        past = [r for r in times[max(0, i - 1) : i] if r < 1 and t > 0]
        predictor = _bh2(s, t, past)
        corrector: Sequence[float] = ()
        if t > 0:
            at_s, *others, new = _bh2(s, t, [*past, t])
            corrector = (new, at_s, *others)
        steps.append(Step(s, t, t / s, 0.0, predictor, corrector))
    return steps


def _bh2(s: float, t: float, others: Sequence[float]) -> list[float]:
    """Weights of ``D_s`` and of the evaluations at ``others``."""
    h = _h(s, t)
    B = math.expm1(-h)
    first = -alpha(t) * B
    if not others:
        return [first]
    r = np.array([_h(s, other) / h if other != t else 1.0 for other in others])
    a = np.array([0.5])
    if len(r) > 1:
        k = np.arange(1, len(r) + 1)
        a = np.linalg.solve(r ** (k[:, None] - 1), [_moment(-h, int(j)) / B for j in k])
    slopes = -alpha(t) * B * a / r
    return [first - slopes.sum(), *slopes.tolist()]


def _moment(h: float, j: int) -> float:
    """``j! h phi_(j+1)(h)``, where ``phi_1(h) = (e^h - 1) / h`` and ``phi_(j+1) = (phi_j - 1/j!) / h``."""
    if abs(h) < 1:
        # j! sum_m h^(m+1) / (m + j + 1)!, without the recursion's cancellation.
        return sum(math.factorial(j) * h ** (m + 1) / math.factorial(m + j + 1) for m in range(20))
    phi = math.expm1(h) / h
    for i in range(1, j + 1):
        phi = (phi - 1 / math.factorial(i)) / h
    return math.factorial(j) * h * phi


def _two(total: float, r: float | None, s: float, t: float) -> list[float]:
    """``total (D_s + (D_s - D_r) h / (2 (l_s - l_r)))`` as weights."""
    if r is None or r == 1 or t == 0:
        return [total]
    slope = total * _h(s, t) / (2 * _h(r, s))
    return [total + slope, -slope]
