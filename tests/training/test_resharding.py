"""A run goes on with any number of processes, at any stage, as if nothing had changed."""

import pytest
from checkpoints import assert_close


def test_every_change_of_processes_and_stage(launch):
    """1 -> 2 -> 4 -> 1 -> 2 -> 1 processes, through all stages and offload, against a run that never changed."""
    launch("training.steps=12", "name=whole", processes=0)
    changes = [
        (0, ["training.zero_stage=0"]),
        (2, ["training.zero_stage=3"]),
        (4, ["training.zero_stage=2"]),
        (0, ["training.zero_stage=3", "training.offload=weights"]),
        (2, ["training.zero_stage=1", "training.offload=optimizer"]),
        (0, ["training.zero_stage=0", "training.micro_batch=16"]),
    ]
    for i, (processes, settings) in enumerate(changes):
        steps = 2 * (i + 1)
        launch("name=changed", f"training.steps={steps}", *settings, processes=processes, resume=True)
        files = {path.name for path in launch.checkpoint(steps, "changed").iterdir()}
        assert {f"part_{rank:05d}.safetensors" for rank in range(max(1, processes))} < files
    whole, changed = launch.losses("whole"), launch.losses("changed")
    assert changed.keys() == whole.keys()
    for step, loss in whole.items():
        assert changed[step] == pytest.approx(loss, rel=1e-5)
    assert_close(launch.checkpoint(12, "whole"), launch.checkpoint(12, "changed"), atol=1e-5)


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "weights")])
def test_offloaded_training_is_the_same(launch, stage, offload):
    for name in ("none", offload):
        launch(f"name={name}", f"training.zero_stage={stage}", f"training.offload={name}", processes=0)
    assert_close(launch.checkpoint(6, "none"), launch.checkpoint(6, offload), atol=1e-6)
