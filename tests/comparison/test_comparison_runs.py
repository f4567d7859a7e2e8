"""Runs of a comparison: how far each is, and many side by side, with commands that take no time."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint_of
from models import DIGITS, filled
from safetensors.torch import save_file

from fdtrain.checkpoint import store
from fdtrain.comparison import evaluate, runs
from fdtrain.comparison.runs import PlannedRun, Schedule
from fdtrain.config import dump_config, load_config
from fdtrain.errors import UserError
from fdtrain.evaluation.feature_networks import pixel_features

SETTINGS = {"draws": 2, "ode_images": 0, "images": 300, "features": "x", "ode_tolerance": 0.1}


@pytest.fixture
def run(launch):
    """Of nine steps, with checkpoints of the seventh and the ninth."""
    config = load_config([launch.config], ["training.steps=9"])
    for step in (7, 9):
        checkpoint_of(config.folder, filled(DIGITS, step), 1, step=step)
    (config.folder / "config.yaml").write_text(dump_config(config))
    return PlannedRun("v", 0, config, SETTINGS)


def damage(run, step):
    os.truncate(run.folder / "checkpoints" / store.folder_name(step) / "part_00000.safetensors", 1000)


def write_results(run, step):
    """As an evaluation of the checkpoint of that step leaves them."""
    common = {"version": 1, "images": 300, "device": "cpu", "seconds": 1.0, "step": step}
    for path in runs.result_files(run.folder, run.config, SETTINGS).values():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"kind": "nll", **common, **IDENTITY}))
        save_file({"elbo": torch.zeros(300)}, path.with_suffix(".safetensors"))
    record = json.dumps(runs.record(run.folder, SETTINGS))
    (run.folder / "evaluation" / runs.SETTINGS).write_text(record)


IDENTITY = {
    **dict.fromkeys(("dataset", "source", "split", "fingerprint", "dequantisation", "dtype"), "x"),
    **dict.fromkeys(("images_in_split", "levels", "seed", "batch"), 1),
}


def test_results_of_an_earlier_step_are_none(run):
    write_results(run, 9)
    assert run.finished()
    write_results(run, 7)
    assert run.trained()
    assert not run.finished()


def test_an_evaluation_of_an_earlier_step_fails(run, monkeypatch):
    """Where the last checkpoint is damaged between the training and the evaluation."""
    damage(run, 9)
    monkeypatch.setattr(evaluate, "_nll", lambda *words: write_results(run, 7))
    monkeypatch.setattr(evaluate, "measure_noise", lambda *rest: None)
    with pytest.raises(UserError, match=r"nll_test.json is of step 7, not 9: no later checkpoint is sound"):
        evaluate.evaluate(run.folder, SETTINGS, torch.device("cpu"))


def test_noise_is_measured_anew_where_its_own_settings_change(run, monkeypatch):
    monkeypatch.setattr(evaluate, "open_features", lambda *rest: pixel_features(DIGITS.shape))
    settings = SETTINGS | {"samplers": [{"solver": "ode"}], "nfe": [1], "samples": 4, "strata": 2, "batches": 2}
    path, written = run.folder / "noise.json", []
    for changed in ({}, {"ode_tolerance": 0.2, "ode_images": 3}, {"samples": 5}, {"nfe": [2]}):
        settings = settings | {"gradients": 2} | changed
        evaluate.measure_noise(run.folder, run.config, settings, torch.device("cpu"), path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert len(set(written)) == 3


@dataclass
class Stub:
    """A run whose commands are given."""

    name: str
    folder: Path
    scripts: list[str]

    def finished(self) -> bool:
        return (self.folder / "done").exists()

    def commands(self, processes: int) -> list[list[str]]:
        return [[sys.executable, "-c", script] for script in self.scripts]


def stub(folder, name, *scripts):
    done = f"import pathlib; pathlib.Path({str(folder / name / 'done')!r}).touch()"
    return Stub(name, folder / name, [*scripts, done])


def test_a_run_that_fails_is_told_and_stops_nobody(tmp_path, caplog):
    fails = "import sys; print('fdtrain: error: the disk is full.', file=sys.stderr); sys.exit(2)"
    runs = [stub(tmp_path, "a"), stub(tmp_path, "b", fails), stub(tmp_path, "c", "1 / 0"), stub(tmp_path, "d")]
    runs += [stub(tmp_path, "e", "import os; os.kill(os.getpid(), 9)"), stub(tmp_path, "f", "raise SystemExit(3)")]
    # Finished already: it is not started.
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "done").touch()
    with caplog.at_level("INFO"):
        failures = Schedule(runs, slots=2, processes=1).work()
    assert failures == {
        "b": "the disk is full.",
        "c": "exit code 1: ZeroDivisionError: division by zero",
        "e": "exit code -9: no output",
    }
    assert [run.finished() for run in runs] == [True, False, False, True, False, True]
    assert "b failed: the disk is full." in caplog.messages
    assert caplog.messages[-1] == "6 of 6 runs, 3 failed"
