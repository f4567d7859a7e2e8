import numpy as np
import pytest
import torch

from fdtrain.networks.embeddings import TIME_EMBEDDINGS, PixelFeatures, all_octaves


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
def test_times_are_bounded_and_told_apart_at_both_ends(name):
    embed, width = TIME_EMBEDDINGS[name]
    embedding = embed(torch.tensor([0.0, 1e-3, 0.999, 1.0]), 64, 256)
    assert embedding.shape == (4, 64 * width)
    assert embedding.abs().max() <= 1
    distances = torch.cdist(embedding, embedding)
    assert distances[0, 1] > 0.3
    assert distances[2, 3] > 0.3


NOW = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("fading", [False, True])
def test_the_finest_feature_has_the_period_of_a_level(fading):
    """It cannot tell levels apart, only where within its level a pixel lies; the next tells odd from even."""
    features = PixelFeatures(17, 2, fading)
    x = torch.full((1, 1, 1, 1), 0.3)
    here, there = (features(at, at, NOW).flatten() for at in (x, x + 2 / 17))
    assert here.shape == (features.channels(1),) == (5,)
    finest, next_ = [1, 3], [2, 4]  # sines, then cosines
    assert torch.allclose(there[finest], here[finest], atol=1e-5)
    assert torch.allclose(there[next_], -here[next_], atol=1e-5)


def test_an_octave_fades_as_noise_erases_it():
    """Of a pixel at ``x``, noise of deviation ``t`` leaves the mean of a feature at ``t = 0`` that the faded has."""
    constant, faded = PixelFeatures(17, 4, fading=False), PixelFeatures(17, 4, fading=True)
    x, t = torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.02], dtype=torch.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    noisy = (x + t * torch.from_numpy(nodes)).view(-1, 1, 1, 1)
    mean = torch.from_numpy(weights / weights.sum()) @ constant(noisy, noisy, NOW).flatten(1)
    x = x.view(1, 1, 1, 1)
    assert torch.allclose(faded(x, x, t).flatten(), mean, atol=1e-12)


@pytest.mark.parametrize(("levels", "after_last"), [(2, 1), (17, 4), (256, 8)])
def test_the_longest_period_is_within_the_range_of_the_values(levels, after_last):
    assert all_octaves(levels)[1] == after_last
    assert 2 ** (after_last - 1) <= levels / 2 < 2**after_last


def test_octaves_are_counted_from_one_level_upwards():
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.0, 0.01], dtype=torch.float64)
    counted, named = PixelFeatures(17, 3, fading=True), PixelFeatures(17, (0, 3), fading=True)
    assert torch.equal(counted(x, x, t), named(x, x, t))
    finer = PixelFeatures(17, (-3, 3), fading=True)(x, x, t)
    assert torch.equal(finer[:, 4:7], counted(x, x, t)[:, 1:4])
