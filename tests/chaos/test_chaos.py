"""A job killed again and again, on changing numbers of processes, ends as if nothing had happened.

In CI in a short form, every moment once; ``make chaos`` kills fifty times.
"""

import os
import random
import signal
import subprocess

import pytest
from checkpoints import assert_close, assert_same
from conftest import ROOT, environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.checkpoint import store

MOMENTS = ("in a step", "in a part", "before the rename", "after the rename", "in evaluation")
"""Of training/injected.py."""
KILLS = int(os.environ.get("FDTRAIN_CHAOS_KILLS", len(MOMENTS)))
STEPS = 4 * KILLS + 4
EVALUATE_EVERY = 5
SETTINGS = [
    f"training.steps={STEPS}",
    "checkpoint.every=2",
    f"monitor.evaluate_every={EVALUATE_EVERY}",
    # Rounding, which differs with the number of processes, must not grow into another run.
    "training.lr=1e-4",
]


def interrupted(launch, name: str, seed: int, worlds: list[int]) -> None:
    """Kill at each moment in turn, in random order, a random number of steps after the last checkpoint; then finish."""
    draw = random.Random(seed)
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(KILLS)]
    draw.shuffle(moments)
    for moment in moments:
        done = max([store.step_of(path) for path in store.committed(launch.run_folder(name))], default=0)
        faults = {"kill": {"moment": moment, "step": done + draw.randrange(4)}}
        world = draw.choice(worlds)
        result = run(launch, name, world, faults)
        late = done + 4 + EVALUATE_EVERY >= STEPS
        assert result.returncode == -signal.SIGKILL or (late and result.returncode == 0), result.stderr
    result = run(launch, name, draw.choice(worlds), {})
    assert result.returncode == 0, result.stderr


def run(launch, name: str, world: int, faults: dict) -> subprocess.CompletedProcess:
    processes = world if world > 1 else 0
    command = launch.command(*SETTINGS, f"name={name}", processes=processes, resume=True, faults=faults)
    # A process group of its own, for the kill; tests/ on the path, for the script of the faults.
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, start_new_session=True
    )


def assert_each_step_once(launch, name: str) -> None:
    evaluated = [*range(EVALUATE_EVERY, STEPS, EVALUATE_EVERY), STEPS]
    log = launch.log(name)
    assert [line["step"] for line in log if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in log if "test/bits_per_dim" in line] == evaluated
    board = EventAccumulator(str(launch.run_folder(name) / "tensorboard"), {"scalars": 0}).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in board.Scalars("test/bits_per_dim")] == evaluated


def curve(launch, name: str, key: str) -> dict[int, float]:
    return {line["step"]: line[key] for line in launch.log(name) if key in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    from conftest import Launch

    launch = Launch(tmp_path_factory.mktemp("chaos"), digits)
    launch(*SETTINGS, "name=whole", processes=0)
    return launch


def test_on_random_numbers_of_processes(whole):
    interrupted(whole, "random", seed=KILLS, worlds=[1, 2, 4])
    assert_each_step_once(whole, "random")
    for key in ("train/loss", "test/bits_per_dim"):
        expected = curve(whole, "whole", key)
        found = curve(whole, "random", key)
        assert found == {step: pytest.approx(value, rel=1e-5) for step, value in expected.items()}
    assert_close(whole.checkpoint(STEPS, "whole"), whole.checkpoint(STEPS, "random"), atol=1e-4)


def test_on_one_process_bit_for_bit(whole):
    interrupted(whole, "same", seed=1, worlds=[1])
    assert_each_step_once(whole, "same")
    for key in ("train/loss", "train/gradient_norm", "test/bits_per_dim"):
        assert curve(whole, "same", key) == curve(whole, "whole", key)
    assert_same(whole.checkpoint(STEPS, "whole"), whole.checkpoint(STEPS, "same"))
