"""A job killed again and again, on changing numbers of processes, ends as if nothing had happened.

In CI in a short form, every moment once; ``make chaos`` kills fifty times.
"""

import os
import random
import signal
import subprocess

import forked
import pytest
import yaml
from checkpoints import assert_close, assert_same
from conftest import ROOT, Launch, environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.checkpoint import store

MOMENTS = ("in a step", "in a part", "before the rename", "after the rename", "in evaluation")
"""Of training/injected.py."""
KILLS = int(os.environ.get("FDTRAIN_CHAOS_KILLS", len(MOMENTS)))
SOME = KILLS if "FDTRAIN_CHAOS_KILLS" in os.environ else 3
STEPS = 4 * KILLS + 4
EVALUATE_EVERY = 5
SETTINGS = [
    f"training.steps={STEPS}",
    "checkpoint.every=2",
    f"monitor.evaluate_every={EVALUATE_EVERY}",
]


def interrupted(launch, name: str, seed: int, worlds: list[int], stages: list, kills: int = KILLS) -> None:
    """Kill at each moment in turn, in random order, a random number of steps after the last checkpoint; then finish.

    Every launch has a number of processes and a stage of its own.
    """
    draw = random.Random(seed)
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(KILLS)]
    draw.shuffle(moments)
    for moment in moments[:kills]:
        done = max([store.step_of(path) for path in store.committed(launch.run_folder(name))], default=0)
        faults = {"kill": {"moment": moment, "step": done + draw.randrange(4)}}
        result = run(launch, name, draw.choice(worlds), draw.choice(stages), faults)
        late = done + 4 + EVALUATE_EVERY >= STEPS
        assert result.returncode == -signal.SIGKILL or (late and result.returncode == 0), result.stderr
    result = run(launch, name, draw.choice(worlds), draw.choice(stages), {})
    assert result.returncode == 0, result.stderr


def run(launch, name: str, world: int, stage: int, faults: dict) -> subprocess.CompletedProcess:
    processes, settings = world if world > 1 else 0, [*SETTINGS, f"name={name}", f"training.zero_stage={stage}"]
    command = launch.command(*settings, processes=processes, resume=True, faults=faults)
    # A process group of its own, for the kill; tests/ on the path, for the script of the faults.
    return forked.run(command, cwd=ROOT, env=environment(), start_new_session=True)


def assert_each_step_once(launch, name: str) -> None:
    evaluated = [*range(EVALUATE_EVERY, STEPS, EVALUATE_EVERY), STEPS]
    log = launch.log(name)
    assert [line["step"] for line in log if "train/bits_per_dim" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in log if "test/bits_per_dim" in line] == evaluated
    board = EventAccumulator(str(launch.run_folder(name) / "tensorboard"), {"scalars": 0}).Reload()
    assert [event.step for event in board.Scalars("train/bits_per_dim")] == list(range(1, STEPS + 1))
    assert [event.step for event in board.Scalars("test/bits_per_dim")] == evaluated


def curve(launch, name: str, key: str) -> dict[int, float]:
    return {line["step"]: line[key] for line in launch.log(name) if key in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    launch = Launch(tmp_path_factory.mktemp("chaos"), digits)
    content = yaml.safe_load(launch.config.read_text())
    # Rounding, which differs with the number of processes, must not grow into another run.
    content["training"]["lr"] = 1e-4
    launch.config.write_text(yaml.safe_dump(content))
    launch(*SETTINGS, "name=whole", processes=0)
    return launch


def test_on_random_numbers_of_processes(whole):
    interrupted(whole, "random", seed=KILLS, worlds=[1, 2, 4], stages=[0, 1, 2, 3], kills=SOME)
    assert_each_step_once(whole, "random")
    for key in ("train/bits_per_dim", "test/bits_per_dim"):
        expected = curve(whole, "whole", key)
        found = curve(whole, "random", key)
        assert found == {step: pytest.approx(value, rel=1e-5) for step, value in expected.items()}
    assert_close(whole.checkpoint(STEPS, "whole"), whole.checkpoint(STEPS, "random"), atol=1e-4)


def test_on_one_process_bit_for_bit(whole):
    interrupted(whole, "same", seed=1, worlds=[1], stages=[0])
    assert_each_step_once(whole, "same")
    for key in ("train/bits_per_dim", "train/gradient_norm", "test/bits_per_dim"):
        assert curve(whole, "same", key) == curve(whole, "whole", key)
    assert_same(whole.checkpoint(STEPS, "whole"), whole.checkpoint(STEPS, "same"))


def test_of_the_demo_on_two_processes_bit_for_bit(tmp_path, digits):
    """Its own configuration as `make demo` launches it, with fewer steps and no warm-up."""
    launch = Launch(tmp_path, digits)
    demo = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    assert demo["training"]["zero_stage"] == 0
    demo |= {"output": str(tmp_path / "runs"), "data": {**demo["data"], "path": str(digits)}}
    demo["training"]["warmup_steps"] = 0
    demo["monitor"] |= {"log_every": 1, "sample_every": None, "evaluate_draws": 1}
    launch.config.write_text(yaml.safe_dump(demo))
    launch(*SETTINGS, "name=whole", processes=2)
    interrupted(launch, "killed", seed=2, worlds=[2], stages=[0], kills=max(2, KILLS // 5))
    assert_each_step_once(launch, "killed")
    for key in ("train/bits_per_dim", "train/gradient_norm", "test/bits_per_dim"):
        assert curve(launch, "killed", key) == curve(launch, "whole", key)
    assert_same(launch.checkpoint(STEPS, "whole"), launch.checkpoint(STEPS, "killed"))
