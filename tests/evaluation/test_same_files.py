"""The processes of one tool work on the same files: rank 0's newest checkpoint, or none at all."""

import json

import numpy as np
import pytest
from checkpoints import checkpoint_of
from conftest import fork
from models import DIGITS, filled, flat_features

# A tool whose second process finds the older checkpoint of a run, or reads other weights from the same one.
PROGRAM = """
import os, sys
from fdtrain.checkpoint import store
from fdtrain.evaluation import load
from fdtrain.commands import entry

how, *arguments = sys.argv[1:]
if os.environ["RANK"] == "1" and how == "older":
    newest_step = store.newest_step
    store.newest_step = lambda folder: newest_step(folder).with_name("step_00000007")
if os.environ["RANK"] == "1" and how == "torn":
    read = load.read_model

    def torn(*files):
        model = read(*files)
        next(model.parameters()).add_(1)
        return model

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
