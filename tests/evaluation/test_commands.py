"""What is wrong with a command's options is said before any work."""

import argparse
import math

import pytest
import torch
from models import DIGITS, evaluate, saved

from fdtrain.errors import UserError
from fdtrain.evaluation import curve, nll, report
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.networks.model import Model


@pytest.fixture
def export(tmp_path):
    return saved(Model(DIGITS), tmp_path)


def test_what_was_done_before_a_failure_is_kept(export, digits, tmp_path, monkeypatch, caplog):
    """The bound is there when the ODE fails; the same command does not compute it again."""
    options = ["--images", 4, "--draws", 2, "--json", tmp_path / "out" / "r.json", "--ode", "--tolerance", 0.1]

    def fail(*arguments, **settings):
        raise UserError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Likelihood, "ode", fail)
        with pytest.raises(UserError, match="broken"):
            evaluate(nll, export, "--data", digits, *options)
    assert not (tmp_path / "out" / "r.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Likelihood, "elbo", fail)
        with caplog.at_level("INFO"):
            evaluate(nll, export, "--data", digits, *options)
        assert "ELBO: 4 of 4 images were already computed" in caplog.messages
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["r.json", "r.safetensors"]
        with pytest.raises(UserError, match="broken"):
            evaluate(nll, export, "--data", digits, *options, "--seed", 1)


@pytest.mark.parametrize(
    ("command", "options", "part"),
    [
        (nll, ["--importance", "0"], "--importance must be at least 1"),
        (nll, ["--tolerance", "nan"], "--tolerance must be positive"),
        (nll, ["--ode", "--tolerance", "1e-9"], "--tolerance must be at least 3.1e-05 in this precision"),
        (curve, ["--seed", str(2**63 - 1), "--sets", "2"], "--seed must be from 0 to 9223372036854775806"),
        (nll, ["--draws", "5", "--importance", "2"], "--draws must be even with --importance"),
        (curve, ["--solvers", "sde2", "rk9", "--json", "r.json"], "there is no 'rk9'; there are sde, ode"),
        (curve, ["--grids", "log", "--json", "r.json"], "--grids: there is no grid 'log'; take two_ended"),
        (curve, ["--grids", "karras", "--json", "r.json"], "--grids: 'karras' is infinite at t = 1"),
        (curve, ["--nfe", "4", "0"], "--nfe must be at least 1"),
        (curve, [], "is not a run: say with --json where the result goes"),
    ],
)
def test_options(export, digits, command, options, part):
    with pytest.raises(UserError, match=part):
        evaluate(command, export, "--data", digits, *options)
    assert sorted(p.name for p in export.iterdir()) == ["config.json", "model.safetensors"]


def test_a_report_of_what_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config.yaml"):
        report.run(argparse.Namespace(runs=[tmp_path], compare=False, data=None, out=None))


def test_strata_take_the_variance_between_their_means():
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(5000, 4, dtype=torch.float64, generator=generator) + torch.tensor([0.0, 3.0, 6.0, 9.0])
    found = curve.by_stratum(values, torch.linspace(0, 1, 5))
    assert found["variance_within"] == pytest.approx(4, rel=0.05)
    assert found["variance_iid"] == pytest.approx(4 + 11.25, rel=0.05)
    assert found["error"] == pytest.approx([2 / math.sqrt(5000)] * 4, rel=0.1)
