"""Saves that fail, in real runs: the run goes on, up to a limit; what was there before stays."""

import json

from test_bad_input import error_of


def test_a_full_disk_fails_the_save_and_not_the_run(launch):
    """It is full for the second rank alone."""
    faults = {"disk": {"steps": [4], "rank": 1}}
    settings = ["checkpoint.every=2", "checkpoint.keep_last=9"]
    result = launch(*settings, processes=2, faults=faults)
    assert "rank 1 cannot write its part ([Errno 28] No space left on device)" in result.stderr
    assert "the checkpoint step_00000004 could not be written; the newest is still step_00000002" in result.stderr
    assert "Training goes on (1 of 3 failures)" in result.stderr
    names = sorted(path.name for path in (launch.run_folder() / "checkpoints").iterdir())
    assert names == ["latest", "step_00000002", "step_00000006"]
    assert launch.losses().keys() == set(range(1, 7))


def test_too_many_failures_end_the_run(launch):
    settings = ["checkpoint.every=2", "checkpoint.max_failures=1", "training.steps=12"]
    result = launch(*settings, processes=0, rc=2, faults={"disk": {"steps": [4, 6, 8]}})
    message = error_of(result)
    assert "step_00000006 could not be written ([Errno 28] No space left on device)" in message
    assert "the newest is still step_00000002. checkpoint.max_failures is 1: make room" in message
    assert "Training goes on (1 of 1 failures)" in result.stderr
    # With room made, nothing is lost.
    launch(*settings, processes=0, resume=True)
    assert launch.losses().keys() == set(range(1, 13))
    assert launch.checkpoint(12).exists()


def test_damaged_checkpoints_are_passed_over_in_a_run(launch):
    settings = ["checkpoint.every=2", "checkpoint.keep_last=3"]
    launch(*settings, processes=0)
    whole = launch.losses()
    with (launch.checkpoint(6) / "part_00000.safetensors").open("r+b") as file:
        file.truncate(100)
    state = launch.checkpoint(4) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "step": 5}))
    result = launch(*settings, processes=0, resume=True)
    assert "passing over a checkpoint: step_00000006: part_00000.safetensors is cut short" in result.stderr
    assert "passing over a checkpoint: step_00000004: state.json is cut short or changed" in result.stderr
    assert "resuming after step 2 of 6" in result.stderr
    assert launch.losses() == whole
    for path in (launch.run_folder() / "checkpoints").glob("step_*"):
        (path / "model.json").write_text("{}")
    before = (launch.run_folder() / "metrics.jsonl").read_text()
    assert "model.json: version None, this fdtrain reads 1" in error_of(launch(processes=0, resume=True, rc=2))
    assert (launch.run_folder() / "metrics.jsonl").read_text() == before
