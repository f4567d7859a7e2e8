"""The algebra of power-function averages, against numerical integration and against the recursion itself."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.integrate import quad

from fdtrain.checkpoint.profiles import LONGEST, SHORTEST, decay, exponent_of, fit, inner_product, length_of
from fdtrain.config import EmaConfig

LENGTHS = (0.02, 0.05, 0.1, 0.2, 0.28)


def profile(t, step, length):
    g = exponent_of(length)
    return np.where(t <= step, (g + 1) * t**g / step ** (g + 1), 0.0)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_length_is_the_standard_deviation(length):
    mean = quad(lambda t: t * profile(t, 1, length), 0, 1)[0]
    variance = quad(lambda t: (t - mean) ** 2 * profile(t, 1, length), 0, 1)[0]
    assert variance**0.5 == pytest.approx(length, rel=1e-7)
    assert length_of(exponent_of(length)) == pytest.approx(length, rel=1e-12)


def test_the_ends_of_the_range():
    assert exponent_of(LONGEST) == pytest.approx(0, abs=1e-6)
    assert length_of(exponent_of(SHORTEST)) == pytest.approx(SHORTEST, rel=1e-9)
    for length in (SHORTEST, 0.288):
        assert SHORTEST <= EmaConfig(lengths=(length,)).lengths[0] <= LONGEST
    for length in (0.99 * SHORTEST, LONGEST):
        with pytest.raises(ValidationError):
            EmaConfig(lengths=(length,))


@pytest.mark.parametrize(("a", "b"), [((40, 0.05), (64, 0.1)), ((64, 0.2), (40, 0.02)), ((30, 0.1), (30, 0.1))])
def test_inner_products(a, b):
    expected = quad(lambda t: profile(t, *a) * profile(t, *b), 0, min(a[0], b[0]), epsabs=1e-12)[0]
    found = inner_product(a[0], exponent_of(a[1]), b[0], exponent_of(b[1]))
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_recursion_is_the_integral_over_each_step(length):
    """No rounding of time: the weight of step k is the integral of the profile from k - 1 to k."""
    steps, g = 50, exponent_of(length)
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        weights *= decay(g, step)
        weights[step - 1] += 1 - decay(g, step)
    integrals = [quad(lambda t: profile(t, steps, length), k, k + 1)[0] for k in range(steps)]
    np.testing.assert_allclose(weights, integrals, atol=1e-9)


def tracked(steps, lengths=(0.05, 0.1)):
    return [step for _ in lengths for step in steps], [length for length in lengths for _ in steps]


def test_the_error_is_that_of_the_combined_profile():
    steps, lengths = tracked(range(8, 65, 8))
    found = fit(steps, lengths, 64, 0.15)

    def off(t):
        combined = sum(c * profile(t, s, n) for c, s, n in zip(found.coefficients, steps, lengths))
        return (combined - profile(t, 64, 0.15)) ** 2

    square = quad(off, 0, 64, points=list(range(8, 64, 8)), limit=200)[0]
    norm = quad(lambda t: profile(t, 64, 0.15) ** 2, 0, 64)[0]
    assert found.error == pytest.approx((square / norm) ** 0.5, rel=1e-5)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("snapshots", "error"), [(16, 9.0e-3), (32, 2.3e-3), (64, 5.8e-4)])
def test_four_times_as_exact_with_twice_the_snapshots(snapshots, error):
    """From lengths 0.05 and 0.10, as EDM2 tracks them."""
    assert fit(*tracked(range(100, 100 * snapshots + 1, 100)), 100 * snapshots, 0.15).error == pytest.approx(
        error, 0.02
    )


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_a_tracked_average_is_itself(length):
    steps, lengths = tracked(range(10, 101, 10))
    found = fit(steps, lengths, 100, length)
    chosen = [s == 100 and n == length for s, n in zip(steps, lengths)]
    np.testing.assert_allclose(found.coefficients, np.array(chosen, dtype=float), atol=1e-9)
    assert found.error < 1e-6


def test_neighbouring_steps_do_not_blow_up_the_coefficients():
    """A checkpoint a step after a snapshot: their averages are nearly the same, and rounding must not be magnified."""
    usual = fit(*tracked(range(1000, 64_001, 1000)), 64_000, 0.03)
    close = fit(*tracked([*range(1000, 64_000, 1000), 63_999, 64_000]), 64_000, 0.03)
    assert close.error <= 1.01 * usual.error
    assert np.abs(close.coefficients).sum() < 1.5 * np.abs(usual.coefficients).sum() < 30
