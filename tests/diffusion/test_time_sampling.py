import numpy as np
import pytest
import torch
from scipy import stats

from fdtrain.diffusion.clocks import Asinh
from fdtrain.diffusion.time_sampling import draw_uniform


def test_no_draw_lies_beyond_one():
    """The largest u below 1 must not round to t > 1, where alpha is not a number."""
    u = torch.tensor([np.nextafter(1, 0)], dtype=torch.float64)
    for s in np.logspace(-6, 0, 200):
        assert Asinh(float(s)).quantile(u).item() <= 1


@pytest.mark.parametrize("kind", ["stratified", "lattice", "iid"])
def test_every_draw_is_uniform(kind):
    generator = np.random.default_rng(0)
    draws = [_batch(kind, 64, generator)[:1] for _ in range(2000)]
    assert stats.kstest(np.concatenate(draws), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("strata", [1, 4, 16, 64])
def test_strata_hold_equally_many(strata):
    u = _batch("stratified", 64, np.random.default_rng(3), strata)
    assert np.bincount((u * strata).astype(int)).tolist() == [64 // strata] * strata


def test_strata_at_their_extremes():
    """One for each image is the default, to the bit; a single one is none; a lattice's are one width apart."""
    every, one = (_batch("stratified", 64, np.random.default_rng(4), strata) for strata in (64, 1))
    np.testing.assert_array_equal(every, _batch("stratified", 64, np.random.default_rng(4)))
    np.testing.assert_array_equal(one, _batch("iid", 64, np.random.default_rng(4)))
    np.testing.assert_allclose(np.diff(np.sort(_batch("lattice", 64, np.random.default_rng(4)))), 1 / 64)


def test_variance_of_the_batch_mean():
    """method.md, section 4: what comes from E[g|t] falls as 1/B with iid times and as 1/(B K^2) with K strata."""
    variances = {}
    for kind, strata in (("iid", None), ("stratified", None), ("stratified", 4)):
        for batch in (16, 64):
            generator = np.random.default_rng(2)
            means = [np.exp(_batch(kind, batch, generator, strata)).mean() for _ in range(4000)]
            variances[strata or kind, batch] = np.var(means)
    # Var(e^u) = (e^2 - 1)/2 - (e - 1)^2; within strata of width 1/B: E[e^2u] / (12 B^2).
    iid = (np.e**2 - 1) / 2 - (np.e - 1) ** 2
    for batch in (16, 64):
        assert variances["iid", batch] == pytest.approx(iid / batch, rel=0.15)
        assert variances["stratified", batch] == pytest.approx((np.e**2 - 1) / 24 / batch**3, rel=0.15)
        assert variances[4, batch] == pytest.approx((np.e**2 - 1) / 24 / batch / 4**2, rel=0.15)


def _batch(kind, batch, generator, strata=None):
    place, own, shared = generator.permutation(batch), generator.random(batch), generator.random()
    return draw_uniform(kind, place, own, shared, batch, strata)
