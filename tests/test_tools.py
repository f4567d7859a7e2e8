"""The command lines, on a small run."""

import html
import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from conftest import ROOT, Launch, environment, fork, free_port
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.training import hardware as devices


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    launch = Launch(tmp_path_factory.mktemp("tools"), digits)
    launch("training.steps=30", "training.lr=5e-3", processes=0)
    return launch


def test_help_of_make_is_the_default():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "help"):
        assert f"make {target} " in shown
    assert shown == subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_nll(run, command, tmp_path):
    """On the data that the run has recorded."""
    out = command("evaluate", "nll", run.run_folder(), "--draws", 4, "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert "all 300 images of digits/test, 17 levels, float32" in out
    assert result["images"] == result["images_in_split"] == 300
    elbo = result["elbo"]
    assert f"ELBO {elbo['bits_per_dim']:.4f} bits/dim" in out
    # Between a trained model's and the standard normal's 4.9.
    assert 1.5 < elbo["bits_per_dim"] < 4.5
    assert 0 < elbo["error_draws"] < 0.2
    assert json.loads((run.run_folder() / "evaluation" / "nll_test.json").read_text()) == result
    assert (result["kind"], result["step"], result["device"]) == ("nll", 30, "cpu")
    each = load_file(tmp_path / "r.safetensors")["elbo"]
    assert each.shape == (300,)
    assert each.mean().item() == pytest.approx(elbo["bits_per_dim"])


def test_nll_on_two_processes_is_that_of_one(run, digits, tmp_path):
    """And goes on with what one process had done."""
    arguments = ["nll", run.run_folder(), "--data", digits, "--images", 6, "--draws", 4, "--importance", 2]
    arguments += ["--ode", "--trace", "hutchinson", "--tolerance", 0.1, "--float64"]
    alone = fork(["tools/evaluate.py", *map(str, arguments), "--json", str(tmp_path / "one.json")], tmp_path)
    assert alone.returncode == 0, alone.stderr
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2"]
    command = [*launcher, "--master_port", str(free_port()), "--module", "fdtrain", "evaluate"]
    command += [*map(str, arguments), "--json", str(tmp_path / "two.json")]
    done = forked.run(command, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the first 6 of 300 images of digits/test") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    one.pop("seconds"), two.pop("seconds")
    assert one == two
    assert set(one) > {"elbo", "elbo_importance", "ode", "ode_importance"}
    assert (one["ode_importance"]["probes"], one["ode"]["solver"]) == (2, "Bogacki-Shampine in u")
    assert one["dtype"] == "float64"
    values = [load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    for name, value in values[0].items():
        assert torch.equal(value, values[1][name])
    assert not (run.run_folder() / "evaluation" / ".partial").exists()


def test_curve_and_report(run, command, digits):
    folder = run.run_folder()
    options = ["--images", 8, "--nfe", 2, 4, "--reference", 8, "--strata", 4]
    out = command("evaluate", "curve", folder, "--data", digits, *options)
    assert "curve_test.json: curve_test_quality.png" in out
    found = json.loads((folder / "evaluation" / "curve_test.json").read_text())
    assert [(p["solver"], p["nfe"]) for p in found["points"][:3]] == [("sde", 2), ("sde", 4), ("ode", 2)]
    assert len(found["points"]) == 8
    for point in found["points"]:
        assert point["distance"] > 0
        assert (point["rms"] is None) == (point["solver"] == "sde")
    assert len(found["strata"]["mean"]) == 4
    for name in ("integrand", "variance", "quality", "ode"):
        assert Image.open(folder / "evaluation" / f"curve_test_{name}.png").size == (960, 600)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert "evaluation/quality" in board.Tags()["images"]
    command("evaluate", "report", folder)
    page = (folder / "report.html").read_text()
    # Four plots of curves; of training bits/dim, speed, gradient norm and learning rate at least.
    assert page.count('src="data:image/svg') >= 8
    assert html.escape(f"1 x {devices.name(torch.device('cpu'))}") in page
