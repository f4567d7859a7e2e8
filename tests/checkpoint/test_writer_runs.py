"""Saves that fail, in real runs: the run goes on, up to a limit; what was there before stays."""

import json
import re

from conftest import error_of
from jobs import end, start, wait_for_step


def test_a_full_disk_fails_the_save_and_not_the_run_whose_last_one_waits_for_room(launch):
    """It is full for the second rank alone: once at step 4, twice at the end, then freed."""
    faults = {"disk": {"steps": [4, 6], "rank": 1, "times": 3}}
    settings = ["checkpoint.every=2", "checkpoint.keep_last=9", "checkpoint.retry_timeout_s=100"]
    said = launch(*settings, processes=2, faults=faults).stderr
    assert "rank 1 cannot write its part ([Errno 28] No space left on device)" in said
    assert "the checkpoint step_00000004 could not be written; the newest is still step_00000002" in said
    assert "Training goes on (1 of 3 failures)" in said
    assert said.count("step_00000006 could not be written; the newest is still step_00000002. Trying again for ") == 2
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


def test_a_last_save_that_fails_is_an_error_with_a_code_of_its_own(launch):
    """Of a run that is asked to end: 75 means saved; what has not been saved is 74. The same command goes on."""
    settings = ["checkpoint.every=2", "checkpoint.retry_timeout_s=1", "checkpoint.max_failures=1000"]
    faults = {"disk": {"steps": list(range(5, 2000))}}
    job = start(launch.command(*settings, "training.steps=2000", processes=0, faults=faults))
    wait_for_step(launch, 6, job)
    job.terminate()
    said = end(job)
    assert job.returncode == 74, said
    assert "Trying again for 1 s" in said
    message = error_of(said)
    assert re.search(r"the run has ended, but the checkpoint step_\d+ could not be written \(\[Errno 28\]", message)
    assert "the newest is still step_00000004" in message
    assert "stopped as asked" not in said
    launch(*settings, processes=0, resume=True)
    assert [line["step"] for line in launch.log()] == [1, 2, 3, 4, 5, 6]


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
    said = launch(processes=0, resume=True, rc=2).stderr
    assert "step_00000006: model.json is cut short or changed" in error_of(said)
    assert (launch.run_folder() / "metrics.jsonl").read_text() == before
