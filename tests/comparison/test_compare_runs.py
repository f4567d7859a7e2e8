"""A comparison of real runs, killed in the middle and started again."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, environment
from forked import Forked
from jobs import until

TIMED = {"seconds", "images_per_second"}
V = {"predictor": "v", "interval": [0.01, 1.0], "time_sampling": "iid", "weighting": "v"}
"""A formulation that is singular at 0, and trains on another loss than the bound."""

SAMPLER = {"solver": "ddim", "grid": "flow"}


BROKEN = {"name": "broken", "set": {"training": {"lr": 1e30, "grad_clip": 0, "max_skips": 1, "max_rollbacks": 0}}}


def write(launch, *more):
    """Two variants of the small configuration and what else is given."""
    small = {"draws": 2, "ode_images": 4, "ode_tolerance": 0.1, "samples": 16, "nfe": [2, 4], "strata": 4}
    samplers = [{"solver": "ode"}, {"solver": "sde", "grid": "karras"}]
    content = {
        "name": "killed",
        "output": str(launch.folder / "comparisons"),
        "base": str(launch.config),
        "set": {"checkpoint": {"every": 10}},
        "steps": 40,
        "seeds": [0],
        "reference": "bounded",
        "evaluation": {**small, "samplers": samplers, "batches": 4, "gradients": 2},
        "variants": [{"name": "bounded"}, {"name": "v", "set": {"diffusion": V}, "sampler": SAMPLER}, *more],
    }
    path = launch.folder / "killed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(path):
    pipe = subprocess.PIPE
    command = [sys.executable, "tools/compare.py", str(path), "--jobs", "2"]
    return Forked(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)


def ended(job, code):
    _, errors = job.communicate(timeout=600)
    assert job.returncode == code, errors
    return errors


def table(folder):
    return json.loads((folder / "comparison.json").read_text())["variants"]


def numbers(folder):
    """The table of the two variants without what is timed."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in table(folder)[:2]]


def test_a_comparison_that_is_killed_continues_to_the_same_table(launch, command):
    path, folder = write(launch), launch.folder / "comparisons" / "killed"
    job = start(path)
    # The runs are side by side, and neither has ended.
    logs = [folder / "runs" / f"{name}-seed0" / "metrics.jsonl" for name in ("bounded", "v")]
    until(lambda: job.poll() is not None or all(log.exists() and '"step": 5,' in log.read_text() for log in logs), 300)
    assert job.poll() is None, job.communicate()
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    # When the comparison ended, its runs saved and ended too; then they are resumed, and not begun again.
    outputs = [log.parent / "output.txt" for log in logs]
    again = start(path)
    until(lambda: again.poll() is not None or all("resuming after" in text.read_text() for text in outputs), 300)
    assert all("stopped as asked after step" in output.read_text() for output in outputs)
    again.terminate()
    assert "interrupted. The same command goes on" in ended(again, 2)
    assert not (folder / "comparison.json").exists()
    ended(start(path), 0)
    killed = numbers(folder)
    check_the_table_of_what_is_finished(path, folder, command)
    check_training_again_and_a_variant_that_fails(launch, folder)
    assert numbers(folder) == killed
    check_table(folder)
    check_another_comparison_is_refused(path, command)


def check_the_table_of_what_is_finished(path, folder, command):
    """Without one of the runs, and without starting it again."""
    log = folder / "runs" / "v-seed0" / "metrics.jsonl"
    before = log.read_bytes()
    (folder / "runs" / "v-seed0" / "evaluation" / "noise.json").unlink()
    command("compare", path, "--finished")
    assert [row["seeds"] for row in table(folder)] == [[0], []]
    assert log.read_bytes() == before


def check_training_again_and_a_variant_that_fails(launch, folder):
    """One run from the checkpoint before its damaged one, the other, now undisturbed, from the start."""
    last = folder / "runs" / "v-seed0" / "checkpoints" / "step_00000040" / "part_00000.safetensors"
    every = list((folder / "runs" / "bounded-seed0" / "checkpoints").glob("step_*/part_00000.safetensors"))
    for part in (last, *every):
        os.truncate(part, 1000)
    errors = ended(start(write(launch, BROKEN)), 1)
    assert "bounded-seed0 is trained again: step_00000040: part_00000.safetensors is cut short" in errors
    assert "1 of the runs failed" in errors
    assert len(list((folder / "runs" / "bounded-seed0" / "checkpoints.unusable").glob("step_*"))) == len(every)
    assert "resuming after step 30 of 40" in (folder / "runs" / "v-seed0" / "output.txt").read_text()


def check_table(folder):
    """The failed variant has a reason and no numbers; the others have all of theirs."""
    bounded, v, broken = table(folder)
    assert broken["seeds"] == []
    assert ["gradient" in failure["reason"] for failure in broken["failures"]] == [True]
    assert bounded["own_bound"]["difference"] is None
    difference, own = v["own_bound"]["difference"], v["own_bound"]["bits_per_dim"]
    assert difference["mean"] == pytest.approx(own["mean"] - bounded["own_bound"]["bits_per_dim"]["mean"])
    assert (difference["images"], difference["seeds"]) == (300, [0])
    assert bounded["closed_bound"] == bounded["own_bound"]
    assert v.get("closed_bound") is None
    assert v["ode"]["difference"]["images"] == v["own_bound_of_ode_images"]["difference"]["images"] == 4
    assert [point["nfe"] for point in v["points"]] == [2, 4]
    # The second is infinite at the end of both intervals.
    assert [each["sampler"] for each in bounded["samplers"] + v["samplers"]] == 2 * ["ode, two_ended"]
    assert bounded.get("own_sampler") is None
    assert (v["own_sampler"], [point["nfe"] for point in v["own_points"]]) == ("ddim, flow", [2, 4])
    text, page = ((folder / f"comparison.{ending}").read_text() for ending in ("md", "html"))
    assert f"| v | [0.01, 1], gaussian decoder | uniform | {own['mean']:.4f}" in text
    plots = {path.stem for path in folder.glob("*.png")}
    assert plots >= {"training", "images_per_second", "gradient_norm", "lr", "quality", "variance"}
    assert page.count('src="data:image/svg') == len(plots)
    assert "the gradient was unusable" in page


def check_another_comparison_is_refused(path, command):
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"steps": 41}))
    errors = command("compare", path, rc=2)
    assert "holds the results of another comparison: it differs in steps" in errors
    assert "Traceback" not in errors
