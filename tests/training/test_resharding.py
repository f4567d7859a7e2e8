"""A run goes on with any number of processes, at any stage, as if nothing had changed."""

import json
import os
from itertools import product

import pytest
from checkpoints import assert_close
from conftest import fork

WORLDS = [int(world) for world in os.environ.get("FDTRAIN_RESHARDING", "1 2").split()]
"""In CI two; ``make chaos`` has four processes too."""
STAGES = range(4)


def test_what_any_processes_saved_at_any_stage_any_others_load(tmp_path):
    """The optimiser's state on every rank, bit for bit, and the losses of the steps that follow."""
    for work, world in product(("save", "load"), WORLDS):
        result = fork(["tests/training/resharding.py", work, str(tmp_path)], tmp_path, 600, world)
        assert result.returncode == 0, result.stderr
    for world, rank in [(count, rank) for count in WORLDS for rank in range(count)]:
        found = json.loads((tmp_path / f"found_{world}_{rank}.json").read_text())
        assert len(found) == len(WORLDS) * len(STAGES) * len(STAGES)
        for saved_on, saved_at, stage in product(WORLDS, STAGES, STAGES):
            saved = f"{saved_on}x{saved_at}"
            loaded, case = found[f"{saved} {stage}"], f"saved by {saved}, loaded by {world}x{stage}, rank {rank}"
            assert not any(loaded["differing"].values()), f"{case}: {loaded['differing']}"
            losses = json.loads((tmp_path / saved / "losses.json").read_text())
            exact = (saved_on, saved_at) == (world, stage)
            # As many processes at the same stage read back each its own part.
            assert loaded["opened"] == 1 or not exact, case
            assert loaded["losses"] == (losses if exact else pytest.approx(losses, rel=1e-5)), case


def test_every_change_of_processes_and_stage(launch):
    """2 -> 1 -> 2 processes, offloaded and checkpointed or not, against a run that never changed; with labels of which
    some are dropped, on a network that other runs do not use."""
    network = "network={name: vdm, channels: 8, blocks: 1, class_conditional: true, label_dropout: 0.4}"
    launch(network, "training.steps=6", "name=whole", processes=0)
    changes = [
        (2, ["training.zero_stage=2", "training.micro_batch=8"]),
        (1, ["training.zero_stage=3", "training.offload=weights"]),
        (2, ["training.zero_stage=1", "training.offload=optimizer", "network.checkpointing=true"]),
    ]
    for i, (processes, settings) in enumerate(changes):
        steps = 2 * (i + 1)
        launch(network, "name=changed", f"training.steps={steps}", *settings, processes=processes, resume=True)
        files = {path.name for path in launch.checkpoint(steps, "changed").iterdir()}
        assert {f"part_{rank:05d}.safetensors" for rank in range(processes)} < files
    assert launch.losses("changed") == pytest.approx(launch.losses("whole"), rel=1e-5)
    assert_close(launch.checkpoint(6, "whole"), launch.checkpoint(6, "changed"), atol=1e-5)


def test_offloaded_training_is_the_same(launch):
    for offload in ("none", "optimizer"):
        settings = [f"training.offload={offload}", "training.zero_stage=2", "training.optimizer=muon"]
        launch(f"name={offload}", *settings, processes=0)
    assert_close(launch.checkpoint(6, "none"), launch.checkpoint(6, "optimizer"), atol=1e-6)
