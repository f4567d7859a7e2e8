"""Configurations by name, and copies of them."""

import subprocess
import sys

import pytest
from conftest import ROOT

from fdtrain import shipped
from fdtrain.commands import configs
from fdtrain.config import load_config
from fdtrain.errors import UserError


def test_a_name_stands_for_its_file(tmp_path, monkeypatch):
    here = load_config(["configs/digits.yaml", "configs/baselines/edm.yaml"])
    monkeypatch.chdir(tmp_path)
    assert load_config(["digits", "baselines/edm"]) == here
    # As comparisons name their base.
    assert load_config("configs/digits.yaml") == load_config("digits")
    # A file of one's own comes before what has its name.
    (tmp_path / "digits").write_text("name: own")
    assert load_config(["configs/digits.yaml", "digits"]).name == "own"


@pytest.mark.parametrize(
    ("given", "hint"),
    [("digitz", "did you mean 'digits'"), ("a\nb", "cannot read a"), ("a" * 5000, "--config: .*File name too long")],
)
def test_a_name_that_there_is_not(given, hint):
    with pytest.raises(UserError, match=hint) as refused:
        load_config(given)
    assert "\n" not in str(refused.value)


def test_each_is_listed_with_its_first_sentence(command):
    lines = command("configs").splitlines()
    assert [line.split()[0] for line in lines] == list(shipped.names())
    assert all(len(line.split()) > 3 for line in lines)


def test_copies_replace_nothing(tmp_path, command):
    command("configs", "--copy", "baselines/edm", tmp_path)
    assert (tmp_path / "edm.yaml").read_bytes() == shipped.find("baselines/edm").read_bytes()
    assert "exists already" in command("configs", "--copy", "baselines/edm", tmp_path, rc=2)
    command("configs", "--copy", "digits", tmp_path / "none" / "x", rc=2)


def test_output_that_nobody_reads_to_its_end():
    listing = subprocess.Popen(
        [sys.executable, "-u", "-m", "fdtrain", "configs"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    listing.stdout.close()
    assert listing.wait(60) == 0
    assert listing.stderr.read() == b""
    assert "digits" in configs.summary(shipped.find("digits"))
