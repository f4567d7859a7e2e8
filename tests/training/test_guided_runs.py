"""Training with dropped labels, on the networks that the other runs do not use."""

import pytest

VDM = "network={name: vdm, channels: 8, blocks: 1, class_conditional: true, label_dropout: 0.4}"


def test_the_loss_is_the_same_on_two_processes_and_after_resuming(launch):
    settings = [VDM, "training.zero_stage=0", "checkpoint.every=3"]
    launch(*settings, "name=one", processes=0)
    launch(*settings, "name=two", "training.steps=3", processes=2)
    # Checkpointing is no part of the model: it may be switched on to go on with a run.
    launch(*settings, "name=two", "network.checkpointing=true", processes=0, resume=True)
    assert launch.losses("two") == pytest.approx(launch.losses("one"), rel=1e-5)
