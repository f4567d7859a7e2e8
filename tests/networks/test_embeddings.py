import pytest
import torch

from fdtrain.networks.embeddings import TIME_EMBEDDINGS, PixelFeatures


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
def test_times_are_bounded_and_told_apart_at_both_ends(name):
    embed, width = TIME_EMBEDDINGS[name]
    embedding = embed(torch.tensor([0.0, 1e-3, 0.999, 1.0]), 64, 256)
    assert embedding.shape == (4, 64 * width)
    assert embedding.abs().max() <= 1
    distances = torch.cdist(embedding, embedding)
    assert distances[0, 1] > 0.3
    assert distances[2, 3] > 0.3


def test_the_finest_feature_has_the_period_of_a_level():
    """It cannot tell levels apart, only where within its level a pixel lies; the next tells odd from even."""
    features = PixelFeatures(17, 2)
    x = torch.full((1, 1, 1, 1), 0.3)
    here, there = features(x).flatten(), features(x + 2 / 17).flatten()
    assert here.shape == (features.channels(1),) == (5,)
    finest, next_ = [1, 3], [2, 4]  # sines, then cosines
    assert torch.allclose(there[finest], here[finest], atol=1e-5)
    assert torch.allclose(there[next_], -here[next_], atol=1e-5)


def test_no_features_leave_the_image():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(PixelFeatures(256, 0)(x), x)
