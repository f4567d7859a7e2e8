"""Averages of any length from the snapshots on the disk, and the messages where there are none."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints import write_checkpoint
from models import DIGITS, evaluate, flat_features, saved
from power_averages import direct_average, error_bound, walk

import fdtrain
from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import Fragment, power_average
from fdtrain.errors import UserError
from fdtrain.evaluation import ema, fid, nll, result, run_folder, run_page
from fdtrain.evaluation.load import load_model
from fdtrain.evaluation.result import EmaResult
from fdtrain.export.write import export
from fdtrain.networks.model import Model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return walk(tmp_path_factory.mktemp("walk"))


@pytest.fixture
def copied(run, tmp_path):
    """A run's folder to damage."""
    return shutil.copytree(run.folder, tmp_path / "run")


def weights(model):
    return dict(model.named_parameters())


def assert_average(model, history, snapshots, length):
    for name, parameter in weights(model).items():
        expected = direct_average(history[name], length)
        off = float((parameter.flatten().double() - expected).norm())
        assert off <= error_bound(history[name], snapshots, length), name


@pytest.mark.parametrize(("length", "step"), [(0.04, 32), (0.15, 32), (0.12, 20)])
def test_any_length_is_the_tracked_average_within_the_error_of_the_projection(run, length, step):
    """At the last step, or that of any snapshot."""
    folder = run.folder if step == 32 else run.folder / "averages" / f"step_{step:08d}"
    history = {name: each[:step] for name, each in run.weights.items()}
    snapshots = [at for at in run.snapshots if at <= step]
    assert_average(load_model(folder, length), history, snapshots, length)


def test_between_snapshots_the_checkpoint_has_its_own(tmp_path):
    run = walk(tmp_path, steps=30, every=4)
    assert run.snapshots == [4, 8, 12, 16, 20, 24, 28, 30]
    assert_average(load_model(tmp_path, 0.08), run.weights, run.snapshots, 0.08)


def test_lengths_that_cannot_be_had(run, tmp_path, copied):
    walk(tmp_path / "without", steps=2, lengths=())
    shutil.rmtree(copied / "averages")
    export = saved(Model(DIGITS), tmp_path / "export")
    of = r"0.01 at step 32 cannot be had from 16 tracked averages \(of length 0.05, 0.1, at 8 steps\): its profile "
    for folder, length, message in (
        (run.folder, 0.3, r"a relative length from 0.001 to 0.2887, not 0.3"),
        (run.folder, float("nan"), "a relative length from"),
        (run.folder, 0.01, of + r"would be 53% off. They give lengths from 0.03\d to 0.1\d\d; more"),
        (copied, 0.2, r"from 2 tracked averages \(of length 0.05, 0.1, at 1 step\).* more snapshots"),
        (tmp_path / "without", 0.1, "no averages to choose a length from: the run was trained without ema.lengths"),
        (export, 0.1, "is an export and has a single average. Take the run that it came from"),
        (run.folder / "averages" / "step_00000004", None, "is a snapshot of power-function averages. Choose one"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(folder, length)


def test_snapshots_that_cannot_be_used_are_named(copied):
    """Torn, missing in part, of another model, or of impossible lengths."""
    part = copied / "averages" / "step_00000008" / "part_00000.safetensors"
    part.write_bytes(part.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"averages/step_00000008 cannot be used: part_00000.safetensors is cut short"):
        load_model(copied, 0.1)
    part.unlink()
    with pytest.raises(UserError, match=r"step_00000008 cannot be used: part_00000.safetensors is missing. Restore it"):
        load_model(copied, 0.1)
    shutil.rmtree(part.parent)
    load_model(copied, 0.1)
    other = replace(DIGITS, levels=5)
    for length, spec, message in (
        (0.1, other, "step_00000008 cannot be used: it is of another model: levels 5 against 17"),
        (0.0, DIGITS, r"holds averages of impossible lengths \(\[0.0\]\)"),
    ):
        write_checkpoint(copied, 8, [of_length(length, spec)], spec, store.AVERAGES)
        with pytest.raises(UserError, match=message):
            load_model(copied, 0.1)
        shutil.rmtree(part.parent)


def of_length(length, spec):
    """An average of zeros."""
    sizes = {name: p.numel() for name, p in Model(spec).named_parameters()}
    return [Fragment(power_average(length), name, 0, torch.zeros(size)) for name, size in sizes.items()]


def test_an_export_of_a_length_says_so(run, tmp_path):
    export(run.folder, tmp_path / "e", ema_length=0.15)
    exported, chosen = load_model(tmp_path / "e"), fdtrain.load(run.folder, ema_length=0.15)
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), chosen.module.parameters(), strict=True))
    record = json.loads((tmp_path / "e" / "export.json").read_text())
    assert (record["ema_length"], record["step"]) == (0.15, 32)
    assert "weights of step 32 (average of relative length 0.15)" in (tmp_path / "e" / "README.md").read_text()


def test_the_sweep_and_the_report(copied, digits, capsys):
    options = ["--data", digits, "--images", 8, "--draws", 2, "--samples", 8, "--steps", 2, "--batch", 8]
    features = flat_features(copied)
    folder, step, pictures = evaluate(ema, copied, *options, "--lengths", 0.1, 0.07, "--features", features)
    found = result.read(copied / "evaluation" / "ema_test_first8.json")
    assert isinstance(found, EmaResult)
    assert (folder, step, found.step, found.snapshots, found.tracked) == (copied, 32, 32, 8, [0.05, 0.1])
    assert [point.length for point in found.points] == [None, 0.07, 0.1]
    own, first, second = found.points
    assert (own.difference, own.weights_sha256) == (0.0, found.weights_sha256)
    for point in (first, second):
        assert point.difference == pytest.approx(point.bits_per_dim - own.bits_per_dim, abs=1e-9)
        assert point.distance is not None
    assert first.profile_error > 1e-3 > second.profile_error
    assert {path.name for path in pictures.values()} == {
        "ema_test_first8_bits_per_dim.png",
        "ema_test_first8_distance.png",
    }
    assert "ema.decay" in capsys.readouterr().out
    assert not (copied / "evaluation" / ".partial").exists()
    # The same number as the command for one model gives, beside the run's own.
    for length in ([], ["--ema-length", 0.07]):
        evaluate(nll, copied, "--data", digits, "--images", 8, "--draws", 2, "--batch", 8, *length)
    values = [result.read(copied / "evaluation" / f"nll_test_first8{end}.json") for end in ("", "_ema0.07")]
    assert [value.ema_length for value in values] == [None, 0.07]
    assert [value.elbo.bits_per_dim for value in values] == [own.bits_per_dim, first.bits_per_dim]
    page = run_page.of_run(run_folder.read(copied))
    # In caption and alternative text, of both plots.
    assert page.count("against the relative length of the average of the weights") == 4
    assert "step 32, average of length 0.07" in page


def test_options_of_the_sweep(run, digits, tmp_path):
    with pytest.raises(UserError, match="--draws must be at least 1"):
        evaluate(ema, run.folder, "--draws", 0)
    with pytest.raises(UserError, match=r"0.01 at step 32 cannot be had"):
        evaluate(ema, run.folder, "--data", digits, "--lengths", 0.1, 0.01)
    checkpoint = run.folder / "checkpoints" / "step_00000032"
    with pytest.raises(UserError, match="is not a run: say with --json where the result goes"):
        evaluate(ema, checkpoint, "--data", digits)
    with pytest.raises(UserError, match="--ema-length chooses the average of a model; --samples are drawn already"):
        evaluate(fid, "--samples", tmp_path, "--data", digits, "--ema-length", 0.1)
