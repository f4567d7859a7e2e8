"""Sets of images, their statistics, and what these were made of."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation import feature_networks, image_sets, measure
from fdtrain.evaluation.feature_networks import FeatureIdentity, FeatureNetwork
from fdtrain.evaluation.frechet import Gaussian, frechet_distance

CPU = torch.device("cpu")
NETWORK = FeatureNetwork(
    FeatureIdentity("halves", "0" * 64, 32, "half the pixels"),
    lambda x: x.flatten(1)[:, :32].float() / 255,
    lambda x: x.flatten(1)[:, :10].float().softmax(1),
)


@pytest.fixture
def split(digits):
    return Split(digits, "test")


def test_a_set_is_measured_whatever_the_batch(split):
    images = image_sets.of_split(split)
    a = measure.measure(NETWORK, images, 300, CPU, scored=True)
    b = measure.measure(NETWORK, images, 7, CPU, scored=True)
    torch.testing.assert_close(a.moments.covariance, b.moments.covariance, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(a.scores.total, b.scores.total)
    assert torch.equal(a.first_features, b.first_features)
    assert a.first_features.shape == (300, 32)


def test_pixels_as_features():
    """Fewer images than pixels; a shift of all pixels by a level of 16 adds its square."""
    images = torch.randint(0, 240, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = feature_networks.pixel_features((1, 8, 8))
    one, same, brighter = (
        measure.measure(network, image_sets.in_memory("x", x), 7, CPU).moments
        for x in (images, images.clone(), images + 15)
    )
    assert frechet_distance(one, same) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, brighter) == pytest.approx(64 * (15 / 127.5) ** 2)
    assert network.title == "Frechet distance (pixels)"


def test_features_are_kept_up_to_a_limit(split, monkeypatch):
    monkeypatch.setattr(measure, "FIRST_FEATURES", 50)
    images = image_sets.of_split(split)
    first_features = measure.measure(NETWORK, images, 64, CPU).first_features
    assert torch.equal(first_features, NETWORK.run(images.batch(range(50))))


def test_what_cannot_be_measured(split):
    broken = FeatureNetwork(NETWORK.identity, lambda x: NETWORK.run(x) * float("inf"))
    with pytest.raises(UserError, match="'halves' of digits/test are not finite"):
        measure.measure(broken, image_sets.of_split(split), 64, CPU)


def test_mirrored_images_follow_the_others(split):
    images = image_sets.of_split(split)
    both = image_sets.mirrored(images)
    assert both.count == 600
    expected = torch.cat([images.batch(range(290, 300)), images.batch(range(10)).flip(-1)])
    assert torch.equal(both.batch(range(290, 310)), expected)
    assert torch.equal(both.batch(range(595, 600)), images.batch(range(295, 300)).flip(-1))
    assert torch.equal(both.batch(range(5)), images.batch(range(5)))


@pytest.mark.parametrize("most", [1, 7, 300, 1000])
def test_spread_images_cover_the_split(split, most):
    images = image_sets.of_split(split)
    some = image_sets.of_split(split, most)
    assert some.count <= most
    step = -(-300 // most)
    assert torch.equal(some.batch(range(some.count)), images.batch(range(300))[::step])


def test_statistics_are_kept_with_what_they_were_made_of(split, tmp_path):
    """They come back to the last bit; ``mu`` and ``sigma`` are NumPy's mean and covariance, for other programs."""
    about = measure.definition(split, False, NETWORK)
    found = replace(measure.measure(NETWORK, image_sets.of_split(split), 64, CPU), about=about)
    path = tmp_path / "reference.npz"
    measure.save(found, path)
    read = measure.read(path, CPU)
    assert torch.equal(read.moments.mean, found.moments.mean)
    assert torch.equal(read.moments.covariance, found.moments.covariance)
    assert torch.equal(read.first_features, found.first_features)
    assert read.about == about
    assert (about["dataset"], about["split"], about["images"], about["flip"]) == ("digits", "test", 300, False)
    features = found.first_features.double().numpy()
    np.testing.assert_allclose(read.moments.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(read.moments.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-15)
    with np.load(path) as content:
        assert np.array_equal(content["mu"], read.moments.mean)
        assert np.array_equal(content["sigma"], read.moments.covariance)


def test_statistics_of_other_programs(tmp_path):
    """Of standard normal features and of ones that are 2 away with deviation 3: 32 (2^2 + (3 - 1)^2)."""
    path, zero, one = tmp_path / "r.npz", np.zeros(32), np.eye(32)
    np.savez_compressed(path, mu=zero, sigma=one, arr_0=np.zeros(3))
    read = measure.read(path, CPU)
    other = Gaussian(torch.full((32,), 2.0, dtype=torch.float64), 9 * torch.eye(32, dtype=torch.float64))
    assert frechet_distance(other, read.moments) == pytest.approx(256)
    assert (len(read.first_features), read.about) == (0, None)
    for arrays, part in (
        ({"mu": zero, "sigma": one[:4]}, "are no mean and covariance"),
        ({"mu": zero, "sigma": one * np.nan}, "they are not finite"),
        ({"mu": zero}, "holds no statistics ('sigma'). Name another file"),
        ({"mu": np.array([{}]), "sigma": one}, "allow_pickle=False"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=re.escape(part)):
            measure.read(path, CPU)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="holds no statistics"):
        measure.read(path, CPU)


def pictures(folder, *shapes):
    folder.mkdir()
    for i, shape in enumerate(shapes):
        Image.fromarray(np.full(shape, i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_samples_on_disk_are_read_in_order(tmp_path):
    found = image_sets.open_samples(pictures(tmp_path / "a", *[(4, 4, 3)] * 3))
    assert (found.count, found.shape) == (3, (3, 4, 4))
    assert found.batch(range(1, 3))[:, 0, 0, 0].tolist() == [1, 2]
    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4, 1)
    np.savez(tmp_path / "b.npz", images)
    found = image_sets.open_samples(tmp_path / "b.npz")
    assert (found.count, found.shape) == (3, (1, 4, 4))
    assert found.batch(range(2, 3))[0, 0, 0].tolist() == [32, 33, 34, 35]


def test_samples_that_cannot_be_used(tmp_path, digits):
    with pytest.raises(UserError, match="several splits"):
        image_sets.open_samples(digits)
    mixed = image_sets.open_samples(pictures(tmp_path / "mixed", (4, 4), (4, 4, 3)))
    with pytest.raises(UserError, match=r"1\.png is 4x4 with 3 channels, but 0\.png is 4x4 with 1"):
        mixed.batch(range(2))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "float.npz", np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "pickled.npz", np.array([{}], dtype=object))
    for name, part in (
        ("nowhere", "no samples at"),
        ("empty", "holds no images"),
        ("float.npz", "arr_0 is float64"),
        ("pickled.npz", "allow_pickle=False"),
        ("nowhere.npz", "No such file"),
    ):
        with pytest.raises(UserError, match=part):
            image_sets.open_samples(tmp_path / name)
