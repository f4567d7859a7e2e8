"""Evaluations of a run under way."""

from functools import partial

import pytest
import torch
from models import DIGITS, filled

from fdtrain.config import Config, MonitorConfig
from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation import label_features
from fdtrain.evaluation.feature_networks import open_features
from fdtrain.training import callbacks
from fdtrain.training.monitor import Monitor


@pytest.fixture
def features(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(label_features, "EPOCHS", 1)
    label_features.save(*label_features.train(Split(digits, "test")), tmp_path / "features")
    return tmp_path / "features"


def test_measuring_changes_nothing_of_the_training(launch, features):
    settings = ["monitor.frechet_every=3", "monitor.frechet_images=20", "monitor.sample_steps=2"]
    settings += [f"monitor.frechet_features={features}", "name=measured"]
    result = launch("network.dropout=0.2", *settings, processes=0)
    launch("network.dropout=0.2", "name=plain", processes=0)
    assert launch.losses("measured") == launch.losses("plain")
    found = {line["step"]: line["frechet/digits-features"] for line in launch.log("measured") if len(line) == 2}
    assert found.keys() == {3, 6}
    assert all(value > 0 for value in found.values())
    said = f"Frechet distance (digits-features) {found[6]:.3f} to train (20 images, 2 evaluations, EMA)"
    assert said in result.stderr


def test_features_that_cannot_be_had_are_told_before_training(launch, refused):
    message = refused("monitor.frechet_every=3", "monitor.frechet_features=/nowhere.pt")
    assert "fdtrain: error: features: cannot read /nowhere.pt" in message
    assert not launch.run_folder().exists()


def test_a_wrong_grid_of_samples_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"monitor\.sample_grid: there is no grid 'sine'; take two_ended, which serves"):
        callbacks.monitor_sampler(MonitorConfig(sample_grid="sine"), DIGITS)


def test_passes_are_no_larger_than_they_are_told(digits, features, tmp_path):
    model, seen = filled(DIGITS), []
    model.network.register_forward_pre_hook(lambda network, given: seen.append(len(given[0])))
    monitor = {"evaluate_every": 1, "sample_every": 1, "frechet_every": 1, "sample_steps": 1}
    monitor |= {"evaluate_draws": 2, "sample_images": 7, "frechet_images": 7}
    content = {"name": "x", "output": tmp_path, "data": {"path": str(digits)}, "training": {"steps": 1}}
    config = Config.model_validate({**content, "monitor": monitor})
    network = open_features(features, torch.device("cpu"))
    (tmp_path / "x" / "samples").mkdir(parents=True)
    split = partial(Split, digits)
    run = callbacks.Watched(config, DIGITS, split, network, 3, Monitor(config, False, {}))
    for every, report in callbacks.reports(run):
        seen.clear()
        report(every, model)
        assert max(seen) <= 3
