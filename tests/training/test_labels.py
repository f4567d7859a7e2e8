"""Labels given to the network in training."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from fdtrain.diffusion.time_sampling import Asinh
from fdtrain.networks.model import ModelSpec
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.trainer import Trainer

SPEC = ModelSpec("dit", {}, "bounded", 0.1, 1, 8, 17, "digits", classes=["a", "b", "c"])


def given(spec, share):
    trainer = SimpleNamespace(
        spec=spec,
        device=torch.device("cpu"),
        config=SimpleNamespace(network=SimpleNamespace(label_dropout=share)),
        draws=BatchNoise(0, 4000, 1000, "iid", Asinh(0.1), torch.device("cpu")),
    )
    return Trainer._label(trainer, 5, range(1, 3), torch.arange(2000) % 3), trainer


def test_a_share_is_replaced_by_the_null_class():
    labels, trainer = given(replace(SPEC, null_class=True), 0.25)
    dropped = trainer.draws.dropped_labels(5, range(1, 3), 0.25)
    assert 400 < dropped.sum() < 600
    assert torch.equal(labels, torch.where(dropped, 3, torch.arange(2000) % 3))


def test_without_a_null_class_labels_stay():
    assert torch.equal(given(SPEC, 0.0)[0], torch.arange(2000) % 3)
