"""Distances against second implementations and known values."""

import numpy as np
import pytest
import scipy.linalg
import torch

from fdtrain.evaluation.frechet import (
    ClassScores,
    FeatureMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)


def features(n, dims, seed, shift=0.0):
    """Correlated, not centred, as after a rectifier."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=generator) / dims**0.5
    return (torch.randn(n, dims, generator=generator) @ mix + shift).relu()


def moments(x):
    result = FeatureMoments(x.shape[1])
    result.add(x)
    return result.gaussian()


def by_matrix_root(x, y):
    """The textbook formula with scipy's square root of a matrix."""
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


@pytest.mark.parametrize("dims", [5, 200])
def test_frechet_distance_is_that_of_the_matrix_root(dims):
    x, y = features(600, dims, 0), features(500, dims, 1, shift=0.3)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(by_matrix_root(x, y), rel=1e-6)
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(by_matrix_root(x, y), rel=1e-6)


def test_frechet_distance_of_fewer_images_than_features():
    """Then tr (C_a C_b)^(1/2) is the nuclear norm of the centred features' products."""
    x, y = features(20, 100, 0), features(30, 100, 1, shift=0.3)
    a, b = ((f.double() - f.double().mean(0)) / (len(f) - 1) ** 0.5 for f in (x, y))
    cross = torch.linalg.matrix_norm(a @ b.T, "nuc")
    expected = (x.double().mean(0) - y.double().mean(0)).square().sum() + a.square().sum() + b.square().sum()
    assert frechet_distance(moments(x), moments(y)) == pytest.approx((expected - 2 * cross).item(), rel=1e-6)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    x = features(50, 80, 0)
    assert frechet_distance(moments(x), moments(x)) < 1e-9
    constant = torch.ones(10, 3)
    assert frechet_distance(moments(constant), moments(constant + 1)) == pytest.approx(3)


def test_moments_of_parts_are_those_of_one_pass():
    x = features(1000, 50, 0, shift=2.0)
    whole, sums = moments(x), FeatureMoments(50)
    for part in x.split([1, 299, 700]):
        sums.add(part)
    merged = sums.gaussian()
    for a, b in ((whole.mean, merged.mean), (whole.covariance, merged.covariance)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-14)
    assert frechet_distance(whole, merged) < 1e-9


def test_kernel_distance_against_its_definition():
    x, y = features(60, 8, 0), features(70, 8, 1, shift=0.5)

    def kernel(a, b):
        return (np.dot(a, b) / 8 + 1) ** 3

    a, b = x.double().numpy()[:60], y.double().numpy()
    same = sum(kernel(a[i], a[j]) for i in range(60) for j in range(60) if i != j) / (60 * 59)
    other = sum(kernel(b[i], b[j]) for i in range(70) for j in range(70) if i != j) / (70 * 69)
    whole = same + other - 2 * np.mean([[kernel(i, j) for j in b] for i in a])
    # Subsets of 60 out of 70 average to the estimate from all.
    assert kernel_distance(x, y) == pytest.approx(whole, rel=0.02)


def test_precision_and_recall_of_known_sets():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(300, 2, generator=generator)
    both = torch.cat([left, torch.randn(300, 2, generator=generator) + 100])
    assert precision_recall(left, left) == (1.0, 1.0)
    # The data has one mode more than the samples: precise, half recalled.
    assert precision_recall(both, left) == (1.0, 0.5)
    assert precision_recall(left, both) == (0.5, 1.0)
    assert precision_recall(left, left + 1000) == (0.0, 0.0)


def test_inception_score_of_known_classes():
    """As many classes, each certain and equally frequent, as the score says; 1 when nothing is said."""
    certain = torch.eye(5).repeat(40, 1)
    scores = ClassScores(5, 200)
    scores.add(0, certain[:130])
    scores.add(130, certain[130:])
    assert inception_score(scores) == pytest.approx((5.0, 0.0), abs=1e-9)
    scores = ClassScores(5, 200)
    scores.add(0, torch.full((200, 5), 0.2))
    assert inception_score(scores) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_inception_score_against_its_definition():
    p = torch.rand(100, 7, generator=torch.Generator().manual_seed(0)).softmax(1).double()
    scores = ClassScores(7, 100)
    scores.add(0, p)
    parts = [(q * (q.log() - q.mean(0).log())).sum(1).mean().exp() for q in p.split(10)]
    assert inception_score(scores)[0] == pytest.approx(torch.stack(parts).mean().item(), rel=1e-12)
