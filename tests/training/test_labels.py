"""Labels given to the network in training."""

from dataclasses import replace

import torch

from fdtrain.diffusion.clocks import Asinh
from fdtrain.networks.model import ModelSpec
from fdtrain.training.batch_noise import BatchNoise

SPEC = ModelSpec("dit", {}, "bounded", 0.1, 1, 8, 17, "digits", classes=["a", "b", "c"])


NOISE = BatchNoise(0, 4000, 1000, "iid", Asinh(0.1), torch.device("cpu"))


def given(spec, share):
    return NOISE.labels(5, range(1, 3), torch.arange(2000) % 3, spec, share)


def test_a_share_is_replaced_by_the_null_class():
    labels = given(replace(SPEC, null_class=True), 0.25)
    dropped = NOISE.dropped_labels(5, range(1, 3), 0.25)
    assert 400 < dropped.sum() < 600
    assert torch.equal(labels, torch.where(dropped, 3, torch.arange(2000) % 3))


def test_without_a_null_class_labels_stay():
    assert torch.equal(given(SPEC, 0.0), torch.arange(2000) % 3)
