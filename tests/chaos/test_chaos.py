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
LONG = "FDTRAIN_CHAOS_KILLS" in os.environ
KILLS = int(os.environ.get("FDTRAIN_CHAOS_KILLS", len(MOMENTS)))
STEPS = 4 * KILLS + 4
EVALUATE_EVERY = 5


def run(launch, name: str, steps: int, world: int, stage: int, faults: dict) -> subprocess.CompletedProcess:
    settings = [f"name={name}", f"training.steps={steps}", f"training.zero_stage={stage}"]
    settings += ["checkpoint.every=2", f"monitor.evaluate_every={EVALUATE_EVERY}"]
    command = launch.command(*settings, processes=world if world > 1 else 0, resume=True, faults=faults)
    # A process group of its own, for the kill; tests/ on the path, for the script of the faults.
    return forked.run(command, cwd=ROOT, env=environment(), start_new_session=True)


def interrupted(launch, name: str, worlds, stages, kills: int = KILLS, steps: int = STEPS, seed: int = KILLS) -> None:
    """Kill at each moment in turn, in random order, a random number of steps after the last checkpoint; then finish.

    Every launch has a number of processes and a stage of its own. Each step is logged once.
    """
    draw = random.Random(seed)
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(KILLS)]
    draw.shuffle(moments)
    for moment in moments[:kills]:
        done = max([store.step_of(path) for path in store.committed(launch.run_folder(name))], default=0)
        faults = {"kill": {"moment": moment, "step": done + draw.randrange(4)}}
        result = run(launch, name, steps, draw.choice(worlds), draw.choice(stages), faults)
        late = done + 4 + EVALUATE_EVERY >= steps
        assert result.returncode == -signal.SIGKILL or (late and result.returncode == 0), result.stderr
    result = run(launch, name, steps, draw.choice(worlds), draw.choice(stages), {})
    assert result.returncode == 0, result.stderr
    board = EventAccumulator(str(launch.run_folder(name) / "tensorboard"), {"scalars": 0}).Reload()
    evaluated = [*range(EVALUATE_EVERY, steps, EVALUATE_EVERY), steps]
    for key, expected in (("train/bits_per_dim", list(range(1, steps + 1))), ("test/bits_per_dim", evaluated)):
        assert list(curve(launch, name, key)) == expected
        assert [event.step for event in board.Scalars(key)] == expected


def curve(launch, name: str, key: str) -> dict[int, float]:
    lines = [line for line in launch.log(name) if key in line]
    found = {line["step"]: line[key] for line in lines}
    assert len(found) == len(lines)
    return found


def assert_bit_for_bit(launch, name: str, steps: int = STEPS) -> None:
    for key in ("train/bits_per_dim", "train/gradient_norm", "test/bits_per_dim"):
        assert curve(launch, name, key) == curve(launch, "whole", key)
    assert_same(launch.checkpoint(steps, "whole"), launch.checkpoint(steps, name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    launch = Launch(tmp_path_factory.mktemp("chaos"), digits)
    content = yaml.safe_load(launch.config.read_text())
    # Rounding, which differs with the number of processes, must not grow into another run.
    content["training"]["lr"] = 1e-4
    launch.config.write_text(yaml.safe_dump(content))
    run(launch, "whole", STEPS, 1, 0, {})
    return launch


def test_on_one_process_bit_for_bit(whole):
    interrupted(whole, "same", [1], [0])
    assert_bit_for_bit(whole, "same")


def test_on_random_numbers_of_processes(whole):
    interrupted(whole, "random", [1, 2, 4] if LONG else [1, 2], [0, 1, 2, 3], KILLS if LONG else 2)
    for key in ("train/bits_per_dim", "test/bits_per_dim"):
        expected = curve(whole, "whole", key)
        assert curve(whole, "random", key) == {step: pytest.approx(value, rel=1e-5) for step, value in expected.items()}
    assert_close(whole.checkpoint(STEPS, "whole"), whole.checkpoint(STEPS, "random"), atol=1e-4)


def test_of_the_demo_on_two_processes_bit_for_bit(tmp_path, digits):
    """Its own configuration as `make demo` launches it, with fewer steps and no warm-up."""
    launch, kills, steps = Launch(tmp_path, digits), max(1, KILLS // 5), STEPS if LONG else 10
    demo = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    demo |= {"output": str(tmp_path / "runs"), "data": {**demo["data"], "path": str(digits)}}
    demo["training"]["warmup_steps"] = 0
    demo["monitor"] |= {"log_every": 1, "sample_every": None, "evaluate_draws": 1}
    launch.config.write_text(yaml.safe_dump(demo))
    run(launch, "whole", steps, 2, demo["training"]["zero_stage"], {})
    interrupted(launch, "killed", [2], [demo["training"]["zero_stage"]], kills, steps, seed=1)
    assert_bit_for_bit(launch, "killed", steps)
