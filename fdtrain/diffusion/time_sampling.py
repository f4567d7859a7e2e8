"""Which times a training batch sees: strata over the global batch, pushed through a density of ``t``.

A time is made in two steps: ``u`` in [0, 1), one for every image of the *global* batch (across ranks
and accumulation steps), then ``t = density.quantile(u)``. All of it in float64; these are B numbers.
Source: docs/method.md, section 4; the lattice is that of VDM (Kingma et al. 2021, appendix I.1).
"""

from collections.abc import Callable

import numpy as np

# Each takes (stratum, own, shared, global_batch) as described in draw_uniform.
DRAWS: dict[str, Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]] = {
    # One image per stratum: the variance left is the one within strata.
    "stratified": lambda stratum, own, shared, batch: (stratum + own) / batch,
    # One shift for the whole batch.
    "lattice": lambda stratum, own, shared, batch: (stratum / batch + shared) % 1.0,
    # No strata: for comparison.
    "iid": lambda stratum, own, shared, batch: own,
}


def draw_uniform(kind: str, stratum: np.ndarray, own: np.ndarray, shared: float, global_batch: int) -> np.ndarray:
    """``u`` in [0, 1) for some images of a global batch.

    Args:
        kind: ``stratified``, ``lattice`` or ``iid``.
        stratum: integers ``(n,)`` out of ``range(global_batch)``, these images' part of a permutation of it.
        own: uniform draws ``(n,)``, one per image.
        shared: one uniform draw, the same for the whole global batch.
        global_batch: images of one optimiser step over all ranks and accumulation steps.
    """
    return DRAWS[kind](stratum, own, shared, global_batch)
