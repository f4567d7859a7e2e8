"""Frechet distances of a run under way."""

import pytest

from fdtrain.data.split import Split
from fdtrain.evaluation.fidelity import label_features


@pytest.fixture
def features(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(label_features, "EPOCHS", 1)
    label_features.save(*label_features.train(Split(digits, "test")), tmp_path / "features")
    return tmp_path / "features"


def test_measuring_changes_nothing_of_the_training(launch, features):
    settings = ["monitor.frechet_every=3", "monitor.frechet_images=20", "monitor.sample_steps=2"]
    result = launch(
        *settings, f"monitor.frechet_features={features}", "name=measured", "network.dropout=0.2", processes=0
    )
    launch("name=plain", "network.dropout=0.2", processes=0)
    assert launch.losses("measured") == launch.losses("plain")
    found = {line["step"]: line["frechet/digits-features"] for line in launch.log("measured") if len(line) == 2}
    assert found.keys() == {3, 6}
    assert all(value > 0 for value in found.values())
    assert (
        f"Frechet distance (digits-features) {found[6]:.3f} to train (20 images, 2 evaluations, EMA)" in result.stderr
    )


def test_features_that_cannot_be_had_are_told_before_training(launch, features):
    message = launch("monitor.frechet_every=3", "monitor.frechet_features=/nowhere.pt", processes=0, rc=2).stderr
    assert "fdtrain: error: features: cannot read /nowhere.pt" in message
    assert not (launch.run_folder() / "metrics.jsonl").exists()
