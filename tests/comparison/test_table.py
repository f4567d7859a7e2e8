"""Means and paired differences on numbers that are known."""

import math

import pytest
import torch

from fdtrain.comparison import table


def test_a_mean_over_seeds():
    assert table.mean([1.0, 2.0, 3.0]) == {"mean": 2.0, "error": pytest.approx(1 / math.sqrt(3)), "values": [1, 2, 3]}
    assert table.mean([1.0]) == {"mean": 1.0, "error": None, "values": [1.0]}
    assert table.mean([]) is None


def test_a_paired_difference_is_over_common_seeds_and_has_both_errors():
    """Seeds differ by 1 and 3 on every image, and images by 0.5 around that; the images' own spread of 100 cancels."""
    images = 100 * torch.arange(4.0)
    own = {0: images + 1 + torch.tensor([0.5, -0.5, 0.5, -0.5]), 1: images + 3, 2: images}
    found = table.difference(own, {0: images, 1: images, 5: images})
    assert (found["mean"], found["images"], found["seeds"]) == (2.0, 4, [0, 1])
    assert found["error_images"] == pytest.approx(torch.tensor([0.25, -0.25, 0.25, -0.25]).std().item() / 2)
    assert found["error_seeds"] == pytest.approx(1.0)
    assert table.difference(own, {7: images}) is None
    assert table.difference({0: images}, {0: images})["error_seeds"] is None
