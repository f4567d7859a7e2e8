"""Losses and gradients that are not finite, injected into real runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
from checkpoints import assert_same, tensors
from conftest import error_of
from jobs import end, start, wait_for_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.checkpoint import soundness, store
from fdtrain.checkpoint.fragments import FIRST_MOMENT, MOMENTUM, SECOND_MOMENT, WEIGHT


def skipped(launch, name="small") -> dict[int, float]:
    return {line["step"]: line["train/skipped_steps"] for line in launch.log(name) if "train/skipped_steps" in line}


def counters(launch, step: int) -> dict:
    return json.loads((launch.checkpoint(step) / "state.json").read_text())["counters"]


@pytest.mark.parametrize(
    ("processes", "stage", "precision", "fault", "optimizer"),
    [
        (0, 0, "fp16", "gradient", "muon"),
        (0, 1, "bf16", "gradient", "adamw"),
        (0, 2, "fp16", "loss", "muon"),
        (2, 0, "fp32", "gradient", "muon"),
        (2, 3, "fp32", "loss", "muon"),
    ],
)
def test_a_bad_step_is_left_out_on_all_ranks(launch, processes, stage, precision, fault, optimizer):
    """Met by the last rank alone; weights and moments stay as they are in that step, and the run goes on."""
    faults = {fault: {"steps": [3], "rank": max(0, processes - 1)}}
    settings = [f"training.zero_stage={stage}", f"training.precision={precision}", f"training.optimizer={optimizer}"]
    launch(*settings, "checkpoint.every=1", "checkpoint.keep_last=9", processes=processes, faults=faults)
    kinds = (WEIGHT, FIRST_MOMENT, SECOND_MOMENT, MOMENTUM)
    before, after, later = (tensors(launch.checkpoint(step), *kinds) for step in (3, 4, 5))
    assert before.keys() == after.keys()
    assert any(MOMENTUM in key for key in before) == (optimizer == "muon")
    assert all(before[key].equal(after[key]) for key in before)
    assert any(not after[key].equal(later[key]) for key in before)
    left_out = skipped(launch)
    assert left_out[4] == 1
    # At fp16 the loss scale may first have to come down.
    assert precision == "fp16" or sum(left_out.values()) == 1
    assert counters(launch, 6)["updates"] == 6 - sum(left_out.values())


def test_past_the_limit_the_run_returns_with_other_draws(launch):
    faults = {"gradient": {"steps": [4, 5, 6, 7]}, "until_return": True}
    settings = ["training.steps=10", "training.max_skips=2", "checkpoint.every=2", "checkpoint.keep_last=9"]
    result = launch(*settings, processes=0, faults=faults)
    assert "unusable in 3 steps in a row up to step 7; back to step_00000004 with other draws" in result.stderr
    assert "(return 1 of 3)" in result.stderr
    assert [line["step"] for line in launch.log() if "train/bits_per_dim" in line] == list(range(1, 11))
    assert sum(skipped(launch).values()) == 0
    board = EventAccumulator(str(launch.run_folder() / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/bits_per_dim")] == list(range(1, 11))
    launch(*settings, "name=undisturbed", processes=0)
    same, other = launch.losses("undisturbed"), launch.losses()
    assert all(same[step] == other[step] for step in range(1, 5))
    assert all(same[step] != other[step] for step in range(5, 11))
    # Other draws are as reproducible as the first: a resume within them is bit-identical.
    last = launch.checkpoint(10).rename(launch.folder / "last")
    shutil.rmtree(launch.checkpoint(8))
    assert "resuming after step 6 of 10" in launch(*settings, processes=0, resume=True).stderr
    assert_same(last, launch.checkpoint(10))


def test_a_gradient_far_larger_than_usual_is_left_out(launch):
    """The limit is a multiple of the running mean after fifty steps: here of ordinary noise."""
    settings = ["training.skip_grad_norm_ratio=1.2", "training.steps=70", "training.lr=1e-9", "training.max_skips=100"]
    launch(*settings, "training.zero_stage=1", processes=0)
    left_out = skipped(launch)
    assert sum(left_out[step] for step in range(1, 51)) == 0
    assert 0 < sum(left_out.values()) < 15
    assert counters(launch, 70)["updates"] == 70 - sum(left_out.values())


def test_a_rate_far_too_high_costs_no_sound_checkpoint(launch):
    """Bad checkpoints come and go above the sound ones; whatever then ends the run, a good rate goes on."""
    settings = ["checkpoint.every=5", "checkpoint.keep_last=1"]
    launch(*settings, "training.steps=20", processes=0)
    sound = launch.losses()
    bad = [*settings, "training.steps=1000", "training.lr=1e6", "training.max_skips=12"]
    command = launch.command(*bad, "training.max_rollbacks=99", processes=0, resume=True)
    job = start(command)
    wait_for_line(job, "back to step_00000020 with other draws (return 1 of 99)")
    job.terminate()
    said = end(job)
    assert job.returncode == 75, said
    saved = Path(re.search(r"saved (\S+)\. ", said)[1])
    folder = launch.run_folder() / "checkpoints"
    assert store.committed(launch.run_folder())[0] == saved
    assert soundness.fault(saved) is None
    # Of the scheduled ones two sound ones stay, whatever was saved beside them.
    healthy = ["step_00000020", "step_00000015"]
    assert (folder / "latest").read_text() == f"{saved.name}\n"
    assert launch.checkpoint(20).exists()
    message = error_of(launch(*bad, "training.max_rollbacks=1", processes=0, resume=True, rc=2).stderr)
    assert f"after 1 returns to a checkpoint; the last is {launch.checkpoint(20)}" in message
    assert [path.name for path in store.committed(launch.run_folder())] == healthy
    assert (folder / "latest").read_text() == "step_00000020\n"
    launch(*settings, "training.steps=25", processes=0, resume=True)
    assert {step: loss for step, loss in launch.losses().items() if step <= 20} == sound
    assert launch.losses().keys() == set(range(1, 26))
    assert sum(skipped(launch).values()) == 0


def test_a_checkpoint_after_which_no_step_succeeds_is_given_up(launch):
    """Written right after the step that destroyed the weights, it says of no trouble yet."""
    settings = ["checkpoint.every=7", "checkpoint.keep_last=1", "training.max_skips=2", "training.max_rollbacks=2"]
    launch(*settings, "training.steps=20", processes=0)
    result = launch(*settings, "training.steps=60", "training.lr=1e6", processes=0, resume=True, rc=2)
    assert "back to step_00000021 with other draws (return 1 of 2)" in result.stderr
    assert "back to step_00000014 with other draws (return 2 of 2)" in result.stderr
    assert store.committed(launch.run_folder())[0] == launch.checkpoint(14)


def test_a_run_that_was_interrupted_returns_to_where_it_would_have_otherwise(launch):
    """Stopped at step 7 it has a checkpoint there, which one that nobody has stopped does not have. After the last
    return it ends."""
    settings = ["checkpoint.every=3", "checkpoint.keep_last=1", "training.max_skips=1", "training.max_rollbacks=2"]
    faults = {"loss": {"steps": [7, 8, 9]}}
    whole = launch("name=whole", "training.steps=10", *settings, processes=0, faults=faults, rc=2)
    launch("training.steps=7", *settings, processes=0)
    assert launch.checkpoint(7).exists()
    stopped = launch("training.steps=10", *settings, processes=0, faults=faults, rc=2, resume=True)
    course = [[line for line in run.stderr.splitlines() if "back to" in line] for run in (whole, stopped)]
    assert course[0] == course[1]
    assert [re.search(r"back to (\w+)", line)[1] for line in course[0]] == ["step_00000006"] * 2
    assert launch.losses() == launch.losses("whole")
    for run, name in ((whole, "whole"), (stopped, "small")):
        message = error_of(run.stderr)
        assert "unusable in 2 steps in a row up to step 9, after 2 returns to a checkpoint; the last is " in message
        assert f"{launch.checkpoint(6, name)}. Lower training.lr" in message
