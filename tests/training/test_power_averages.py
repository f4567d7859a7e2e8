"""Averages in real runs: at every precision and stage, resumed, on other numbers of processes, on a full disk."""

import json
import shutil

import pytest
import torch
from checkpoints import tensors
from power_averages import LENGTHS, direct_average, error_bound

from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import AVERAGE, WEIGHT, power_average
from fdtrain.evaluation.load import load_model

LENGTHS_SET = f"ema.lengths={json.dumps(LENGTHS)}"


def snapshots(launch, name="small"):
    return store.committed(launch.run_folder(name), store.AVERAGES)[::-1]


def steps(launch, name="small"):
    return [store.step_of(path) for path in snapshots(launch, name)]


def content(snapshot):
    return tensors(snapshot, *map(power_average, LENGTHS))


@pytest.mark.parametrize(
    ("precision", "stage", "processes"),
    [("fp16", 0, 0), ("bf16", 1, 0), ("fp16", 2, 2), ("fp32", 3, 0)],
)
def test_they_are_the_averages_of_the_float32_weights_at_every_precision_and_stage(launch, precision, stage, processes):
    """Twelve steps with a checkpoint at each: what is tracked, exponential or by a power, and what is synthesised from
    every other step."""
    settings = ["training.steps=12", "training.lr=0.01", "checkpoint.every=1", "checkpoint.keep_last=12"]
    settings += [LENGTHS_SET, "ema.snapshot_every=2", "network.dropout=0.1", "training.micro_batch=8"]
    launch(*settings, f"training.precision={precision}", f"training.zero_stage={stage}", processes=processes)
    assert steps(launch) == list(range(2, 13, 2))
    trained = [tensors(launch.checkpoint(step), WEIGHT) for step in range(1, 13)]
    history = {key.removeprefix(f"{WEIGHT}/"): [each[key].flatten() for each in trained] for key in trained[0]}
    found = content(snapshots(launch)[-1])
    for key, value in content(launch.checkpoint(12)).items():
        assert torch.equal(found[key], value)
    exponential = tensors(launch.checkpoint(12), AVERAGE)
    for name, weights in history.items():
        assert not torch.equal(weights[0], weights[-1])
        # ema-pytorch copies at the first update, and then averages with decay min(beta, 1 - (1 + n/10)^-1).
        expected = weights[0].double()
        for n, each in enumerate(weights[1:], 1):
            expected.lerp_(each.double(), 1 - min(0.9, 1 - 1 / (1 + n / 10)))
        value = exponential[f"{AVERAGE}/{name}"].flatten().double()
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
        for length in LENGTHS:
            value = found[f"{power_average(length)}/{name}"].flatten().double()
            torch.testing.assert_close(value, direct_average(weights, length), rtol=0, atol=1e-6)
    for name, parameter in load_model(launch.run_folder(), 0.12).named_parameters():
        off = parameter.flatten().double() - direct_average(history[name], 0.12)
        assert float(off.norm()) <= error_bound(history[name], steps(launch), 0.12), name


def test_resumed_and_resharded_runs_have_the_same_snapshots(launch):
    settings = [LENGTHS_SET, "ema.snapshot_every=3", "checkpoint.every=4", "training.steps=12"]
    launch(*settings, processes=0)
    whole = [content(path) for path in snapshots(launch)]
    shutil.rmtree(launch.checkpoint(12))
    # Of a course that the run does not take: steps 9 and 12, and one that is none of its own.
    for path in snapshots(launch)[2:]:
        shutil.rmtree(path)
        shutil.copytree(snapshots(launch)[0], path)
    shutil.copytree(snapshots(launch)[0], path.with_name("step_00000011"))
    launch(*settings, processes=0, resume=True)
    launch(*settings, "training.steps=6", "name=resharded", "training.zero_stage=3", processes=2)
    launch(*settings, "name=resharded", "training.zero_stage=1", processes=0, resume=True)
    for name, atol in (("small", 0), ("resharded", 1e-5)):
        assert steps(launch, name) == [3, 6, 9, 12]
        for expected, snapshot in zip(whole, snapshots(launch, name), strict=True):
            found = content(snapshot)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=atol)


def test_lengths_may_end_but_not_begin_or_change(launch, refused):
    settings = ["checkpoint.every=2", "training.steps=4"]
    launch(LENGTHS_SET, *settings, processes=0)
    # A 64th of the run, but never less than a step.
    assert steps(launch) == [1, 2, 3, 4]
    message = refused("ema.lengths=[0.05]", "training.steps=6", resume="auto")
    assert "belongs to a run with other settings: ema.lengths [0.05, 0.1] against [0.05]. Restore them" in message
    launch("training.steps=6", processes=0, resume=True)
    assert steps(launch) == [1, 2, 3, 4]
    assert not store.open_parts(launch.checkpoint(6)).lengths()
    # Nor by going back to the checkpoint that still has them.
    assert launch.checkpoint(4).exists()
    message = refused(LENGTHS_SET, "training.steps=8", resume="auto")
    assert "step_00000006 belongs to a run with other settings: ema.lengths [] against [0.05, 0.1]" in message


def test_a_full_disk_fails_a_snapshot_and_not_the_run(launch):
    faults = {"disk": {"steps": [4], "rank": 0}}
    result = launch(LENGTHS_SET, "ema.snapshot_every=2", processes=0, faults=faults)
    assert "the averages of step_00000004 could not be written ([Errno 28] No space left on device)" in result.stderr
    assert "syntheses will be less exact. Training goes on (1 of 3 failures)" in result.stderr
    assert steps(launch) == [2, 6]
    assert sorted(path.name for path in launch.run_folder().glob("averages/*")) == ["step_00000002", "step_00000006"]
    assert launch.checkpoint(6).exists()
