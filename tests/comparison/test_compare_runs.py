"""A comparison of real runs, killed in the middle and started again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, environment
from forked import Forked

TIMED = {"seconds", "images_per_second"}
V = {"predictor": "v", "interval": [0.01, 1.0], "time_sampling": "iid", "weighting": "v"}
"""A formulation that is singular at 0, and trains on another loss than the bound."""

SAMPLER = {"solver": "ddim", "grid": "flow"}


def write(launch, name, *more):
    """Two variants and what else is given, two seeds, of the small configuration."""
    small = {"draws": 2, "ode_images": 4, "ode_tolerance": 0.1, "samples": 16, "nfe": [2, 4], "strata": 4}
    samplers = [{"solver": "ode"}, {"solver": "sde", "grid": "karras"}]
    content = {
        "name": name,
        "output": str(launch.folder / "comparisons"),
        "base": str(launch.config),
        "set": {"checkpoint": {"every": 10}},
        "steps": 40,
        "seeds": [0, 1],
        "reference": "bounded",
        "evaluation": {**small, "samplers": samplers, "batches": 4, "gradients": 2},
        "variants": [{"name": "bounded"}, {"name": "v", "set": {"diffusion": V}, "sampler": SAMPLER}, *more],
    }
    path = launch.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, launch.folder / "comparisons" / name


def start(path, *options):
    pipe = subprocess.PIPE
    command = [sys.executable, "tools/compare.py", str(path), "--jobs", "2", *options]
    return Forked(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)


def numbers(folder, variants=("bounded", "v")):
    """The table without what is timed."""
    content = json.loads((folder / "comparison.json").read_text())
    rows = [row for row in content["variants"] if row["name"] in variants]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


@pytest.fixture
def whole(launch):
    """An undisturbed comparison, in which one more variant fails."""
    broken = {"lr": 1e30, "grad_clip": 0, "max_skips": 1, "max_rollbacks": 0}
    path, folder = write(launch, "whole", {"name": "broken", "set": {"training": broken}})
    job = start(path)
    output = job.communicate(timeout=600)
    return job.returncode, *output, folder


def test_a_comparison_that_is_killed_continues_to_the_same_table(launch, whole, command):
    code, _, errors, reference = whole
    assert code == 1, errors
    assert "2 of the runs failed" in errors
    path, folder = write(launch, "killed")
    job = start(path)
    # The first two runs are side by side, and neither has ended.
    logs = [folder / "runs" / f"{name}-seed0" / "metrics.jsonl" for name in ("bounded", "v")]
    deadline = time.monotonic() + 300
    while not all(log.exists() and '"step": 5,' in log.read_text() for log in logs):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    assert not (folder / "comparison.json").exists()
    # When the comparison ended, its runs saved and ended too; then they are resumed, and not begun again.
    outputs = [log.parent / "output.txt" for log in logs]
    again = start(path)
    while not all("resuming after step" in output.read_text() for output in outputs):
        assert again.poll() is None, again.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert all("stopped as asked after step" in output.read_text() for output in outputs)
    again.terminate()
    _, errors = again.communicate(timeout=120)
    assert (again.returncode, "interrupted. The same command goes on" in errors) == (2, True), errors
    assert not (folder / "comparison.json").exists()
    again = start(path)
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert numbers(folder) == numbers(reference)
    check_damaged_checkpoints_are_trained_again(path, folder, reference, command)
    check_table(reference)
    check_the_table_of_what_is_finished(path, folder, command)
    check_another_comparison_is_refused(path, command)


def check_damaged_checkpoints_are_trained_again(path, folder, reference, command):
    """From the one before, or from the start; meanwhile they are in no table."""
    last = folder / "runs" / "v-seed0" / "checkpoints" / "step_00000040" / "part_00000.safetensors"
    every = list((folder / "runs" / "bounded-seed1" / "checkpoints").glob("step_*/part_00000.safetensors"))
    for part in (last, *every):
        os.truncate(part, 1000)
    command("compare", path, "--finished")
    assert [row["seeds"] for row in json.loads((folder / "comparison.json").read_text())["variants"]] == [[0], [1]]
    job = start(path)
    _, errors = job.communicate(timeout=600)
    assert job.returncode == 0, errors
    assert "bounded-seed1 is trained again: step_00000040: part_00000.safetensors is cut short" in errors
    assert numbers(folder) == numbers(reference)
    assert len(list((folder / "runs" / "bounded-seed1" / "checkpoints.unusable").glob("step_*"))) == len(every)


def check_table(folder):
    """The failed variant has a reason and no numbers; the others have all of theirs, in every format."""
    content = json.loads((folder / "comparison.json").read_text())
    bounded, v, broken = content["variants"]
    assert broken["seeds"] == []
    assert ["gradient" in failure["reason"] for failure in broken["failures"]] == [True, True]
    assert bounded["own_bound"]["difference"] is None
    difference, own = v["own_bound"]["difference"], v["own_bound"]["bits_per_dim"]
    assert difference["mean"] == pytest.approx(own["mean"] - bounded["own_bound"]["bits_per_dim"]["mean"])
    assert (difference["images"], difference["seeds"]) == (300, [0, 1])
    assert bounded["closed_bound"] == bounded["own_bound"]
    assert v.get("closed_bound") is None
    assert v["ode"]["difference"]["images"] == v["own_bound_of_ode_images"]["difference"]["images"] == 4
    assert [point["nfe"] for point in v["points"]] == [2, 4]
    # The second is infinite at the end of both intervals.
    assert [each["sampler"] for each in bounded["samplers"] + v["samplers"]] == 2 * ["ode, two_ended"]
    text, table, page = ((folder / f"comparison.{ending}").read_text() for ending in ("md", "csv", "html"))
    assert f"| v | [0.01, 1], gaussian decoder | uniform | {own['mean']:.4f}" in text
    assert table.startswith("variant,t_min,t_max,decoder,dequantisation,ode_dequantisation,seeds,failed,own_bound")
    plots = {path.stem for path in folder.glob("*.png")}
    assert plots >= {"training", "images_per_second", "gradient_norm", "lr", "quality", "variance"}
    assert page.count('src="data:image/svg') == len(plots)
    assert bounded.get("own_sampler") is None
    assert (v["own_sampler"], [point["nfe"] for point in v["own_points"]]) == ("ddim, flow", [2, 4])
    assert "| v | ddim, flow | " in text
    assert "own_sampler_frechet_4" in table
    assert "the gradient was unusable" in page


def check_the_table_of_what_is_finished(path, folder, command):
    """Without one of the runs, and without starting it again."""
    log = folder / "runs" / "v-seed1" / "metrics.jsonl"
    before = log.read_bytes()
    (folder / "runs" / "v-seed1" / "evaluation" / "noise.json").unlink()
    command("compare", path, "--finished")
    assert [row["seeds"] for row in json.loads((folder / "comparison.json").read_text())["variants"]] == [[0, 1], [0]]
    assert "| 1 of 2 |" in (folder / "comparison.md").read_text()
    assert log.read_bytes() == before


def check_another_comparison_is_refused(path, command):
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"steps": 41}))
    errors = command("compare", path, rc=2)
    assert "holds the results of another comparison: it differs in steps" in errors
    assert "Traceback" not in errors
