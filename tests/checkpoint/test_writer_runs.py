"""Saves that fail, in real runs: the run goes on, up to a limit; what was there before stays."""

import json

from jobs import end, start, wait_for_step
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
    message = error_of(result.stderr)
    assert "step_00000006 could not be written ([Errno 28] No space left on device)" in message
    assert "the newest is still step_00000002. checkpoint.max_failures is 1: make room" in message
    assert "Training goes on (1 of 1 failures)" in result.stderr
    # With room made, nothing is lost.
    launch(*settings, processes=0, resume=True)
    assert launch.losses().keys() == set(range(1, 13))
    assert launch.checkpoint(12).exists()


def test_the_last_save_is_tried_again_until_there_is_room(launch):
    """Twice it is full for the second rank, then freed."""
    faults = {"disk": {"steps": [6], "rank": 1, "times": 2}}
    result = launch("checkpoint.retry_timeout_s=100", "checkpoint.max_failures=0", processes=2, faults=faults)
    assert result.stderr.count("step_00000006 could not be written; there is none yet. Trying again for ") == 2
    assert launch.checkpoint(6).exists()


def test_a_last_save_that_fails_is_an_error_with_a_code_of_its_own(launch):
    """All three steps trained, none saved: not 0. Afterwards the same command goes on."""
    settings = ["checkpoint.every=2", "checkpoint.retry_timeout_s=1", "training.steps=5"]
    result = launch(*settings, processes=0, rc=74, faults={"disk": {"steps": [5]}})
    message = error_of(result.stderr)
    assert "the run has ended, but the checkpoint step_00000005 could not be written ([Errno 28] No space" in message
    assert "the newest is still step_00000004" in message
    launch(*settings, processes=0, resume=True)
    assert launch.checkpoint(5).exists()
    assert [line["step"] for line in launch.log()] == [1, 2, 3, 4, 5]


def test_asked_to_end_with_a_full_disk(launch):
    """75 means saved; what has not been saved is 74."""
    settings = ["training.steps=60", "checkpoint.retry_timeout_s=1"]
    job = start(launch.command(*settings, processes=0, faults={"disk": {"steps": list(range(60))}}))
    wait_for_step(launch, 2, job)
    job.terminate()
    error = end(job)
    assert job.returncode == 74, error
    assert "Trying again for 1 s" in error
    assert "fdtrain: error: the run has ended, but the checkpoint step_0000" in error
    assert "stopped as asked" not in error


def test_damaged_checkpoints_are_passed_over_in_a_run(launch):
    """One byte of the second process's part, which it finds as the first finds what it is to look at."""
    settings = ["checkpoint.every=2", "checkpoint.keep_last=3"]
    launch(*settings, processes=2)
    whole = launch.losses()
    part = launch.checkpoint(6) / "part_00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    state = launch.checkpoint(4) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "step": 5}))
    result = launch(*settings, processes=2, resume=True)
    assert result.stderr.count("step_00000006: part_00001.safetensors is cut short or changed") == 1
    assert "passing over a checkpoint: step_00000004: state.json is cut short or changed" in result.stderr
    assert "resuming after step 2 of 6" in result.stderr
    assert launch.losses() == whole
    for path in (launch.run_folder() / "checkpoints").glob("step_*"):
        (path / "model.json").write_text("{}")
    before = (launch.run_folder() / "metrics.jsonl").read_text()
    assert "step_00000006: model.json is cut short or changed" in error_of(
        launch(processes=0, resume=True, rc=2).stderr
    )
    assert (launch.run_folder() / "metrics.jsonl").read_text() == before
