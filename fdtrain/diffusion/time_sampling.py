"""Which times a training batch sees: strata over the global batch, pushed through a density of ``t``.

A time is made in two steps: ``u`` in [0, 1), one for every image of the *global* batch (across ranks
and accumulation steps), then ``t = density.quantile(u)``. All of it in float64; these are B numbers.
Source: docs/method.md, section 4; the lattice is that of VDM (Kingma et al. 2021, appendix I.1).
"""

from collections.abc import Callable

import numpy as np

# Each takes (stratum, own, shared, number of strata); the rest as described in draw_uniform.
DRAWS: dict[str, Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]] = {
    # The variance left is the one within strata.
    "stratified": lambda stratum, own, shared, strata: (stratum + own) / strata,
    # One shift for the whole batch.
    "lattice": lambda stratum, own, shared, strata: (stratum / strata + shared) % 1.0,
    # No strata: for comparison.
    "iid": lambda stratum, own, shared, strata: own,
}


def draw_uniform(
    kind: str, place: np.ndarray, own: np.ndarray, shared: float, global_batch: int, strata: int | None = None
) -> np.ndarray:
    """``u`` in [0, 1) for some images of a global batch.

    Args:
        kind: ``stratified``, ``lattice`` or ``iid``.
        place: integers ``(n,)`` out of ``range(global_batch)``, these images' part of a permutation of it.
        own: uniform draws ``(n,)``, one per image.
        shared: one uniform draw, the same for the whole global batch.
        global_batch: images of one optimiser step over all ranks and accumulation steps.
        strata: a divisor of ``global_batch``, so that all hold equally many images; None: one for each image.
    """
    strata = strata or global_batch
    return DRAWS[kind](place // (global_batch // strata), own, shared, strata)
