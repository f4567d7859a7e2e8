"""A tool on two processes: they work on rank 0's newest checkpoint or not at all, and neither waits for a lost one."""

import json
import os
import signal
import sys

import numpy as np
import pytest
from checkpoints import checkpoint_of
from conftest import fork
from jobs import Group, message
from models import DIGITS, filled, flat_features

# A tool with a shorter heartbeat, that says when it has joined the others; whose second process may find the older
# checkpoint of a run, or read other weights from the same one.
PROGRAM = """
import os, sys
from contextlib import contextmanager
from fdtrain.checkpoint import store
from fdtrain.commands import entry
from fdtrain.evaluation import load
from fdtrain.resilience import heartbeat

how, *arguments = sys.argv[1:]
inner, newest_step, read = heartbeat.process_group, store.newest_step, load.read_model

@contextmanager
def joined(limits, again):
    with inner(limits._replace(heartbeat=6), again) as group:
        print("joined", flush=True)
        yield group

def torn(*files):
    model = read(*files)
    next(model.parameters()).add_(1)
    return model

heartbeat.process_group = joined
if os.environ["RANK"] == "1" and how == "older":
    store.newest_step = lambda folder: newest_step(folder).with_name("step_00000007")
if os.environ["RANK"] == "1" and how == "torn":
    load.read_model = torn
sys.exit(entry.run(arguments[0], arguments[1:]))
"""


@pytest.fixture
def run(tmp_path):
    """With checkpoints of step 7 and step 9, of other weights."""
    for step in (7, 9):
        checkpoint_of(tmp_path / "run", filled(DIGITS, step), 1, step=step)
    return tmp_path / "run"


@pytest.fixture
def on_two(tmp_path):
    (tmp_path / "tool.py").write_text(PROGRAM)
    return lambda *arguments: fork([str(tmp_path / "tool.py"), *map(str, arguments)], tmp_path, processes=2)


def test_samples_are_of_the_checkpoint_that_rank_0_finds(run, on_two, tmp_path):
    common = [run, "--images", 8, "--steps", 2, "--batch", 2, "--out"]
    done = on_two("older", "sample", *common, tmp_path / "two.npz")
    assert done.returncode == 0, done.stderr
    alone = fork(["tools/sample.py", *map(str, common), str(tmp_path / "one.npz")], tmp_path)
    assert alone.returncode == 0, alone.stderr
    images = [np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("one", "two")]
    assert np.array_equal(*images)
    assert json.loads((tmp_path / "two.npz.json").read_text())["step"] == 9


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "{run}", "--images", 8, "--steps", 2, "--out", "{folder}/a.npz"],
        ["evaluate", "nll", "{run}", "--data", "{data}", "--images", 8, "--draws", 2],
        ["evaluate", "fid", "{run}", "--data", "{data}", "--images", 8, "--steps", 2, "--features", "{features}"],
    ],
    ids=lambda command: command[1] if command[0] == "evaluate" else command[0],
)
def test_other_weights_on_another_process_are_refused(run, on_two, digits, tmp_path, command):
    words = {"run": run, "data": digits, "folder": tmp_path, "features": flat_features(tmp_path)}
    done = on_two("torn", *(str(word).format(**words) for word in command))
    assert done.returncode == 2, done.stderr
    assert "process 1 has other files than process 0: weights_sha256" in done.stderr
    assert not (tmp_path / "a.npz").exists()
    assert not list((run / "evaluation").glob("*.json"))


@pytest.mark.parametrize(("tool", "number", "who"), [("sample", signal.SIGKILL, 0), ("nll", signal.SIGSTOP, 1)])
def test_a_process_that_is_killed_or_stopped_is_named_by_the_other_which_ends(run, digits, tmp_path, tool, number, who):
    words = {
        "sample": ["sample", run, "--out", tmp_path / "s.npz", "--images", 100000],
        "nll": ["evaluate", "nll", run, "--data", digits, "--draws", 5000],
    }[tool]
    with Group(2, [sys.executable, "-c", PROGRAM, "as it is", *map(str, words)]) as jobs:
        for job in jobs:
            assert job.stdout.readline() == "joined\n"
        os.kill(jobs[who].pid, number)
        said = message(jobs[1 - who], 60)
        assert f"lost rank {who}" in said
        assert said.endswith("The same command goes on where it was.")
