"""Uploads of exports: to a hub of the test's own, or to none."""

import os

import huggingface_hub
import pytest
from huggingface_hub import constants
from models import DIGITS, filled, saved

from fdtrain.errors import UserError
from fdtrain.export import hub
from fdtrain.export.write import export

TOKEN = "hf_aTokenThatNobodyMaySee"


@pytest.fixture
def folder(tmp_path):
    export(saved(filled(DIGITS), tmp_path / "run"), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def export_to(monkeypatch, command, tmp_path):
    """``fdtrain export FOLDER new`` of one who is logged in at a hub that is out of reach."""

    def run(folder, *options, rc=0):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        return command("export", folder, tmp_path / "new", "--push", "lab/digits", *options, rc=rc)

    return run


def test_the_folder_arrives_whole_and_the_token_is_nowhere_else(folder, tmp_path, export_to, monkeypatch):
    class Hub:
        def __init__(self, library_name):
            pass

        def create_repo(self, repository, private, exist_ok):
            assert (repository, private, exist_ok) == ("lab/digits", True, True)
            return "https://hub/lab/digits"

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            received.update({name: (folder_path / name).read_bytes() for name in allow_patterns})

    received = {}
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    said = export_to(folder)
    assert said.splitlines()[-1].startswith("uploaded to https://hub/lab/digits: 4 files, ")
    assert received == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert TOKEN not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_a_dry_run_needs_no_network(folder, tmp_path, export_to):
    said = export_to(folder, "--dry-run")
    size = sum(path.stat().st_size for path in (tmp_path / "new").iterdir())
    assert said.splitlines()[-1] == f"would be uploaded to lab/digits: 4 files, {size:,} bytes"
    assert f"  model.safetensors  {os.path.getsize(folder / 'model.safetensors'):,} bytes" in said


def test_a_hub_out_of_reach_is_one_line_and_the_export_stays(folder, tmp_path, export_to):
    said = export_to(folder, rc=2)
    (line,) = [line for line in said.splitlines() if line.startswith("fdtrain: error")]
    assert "lab/digits was not uploaded" in line
    assert TOKEN not in said
    assert "Traceback" not in said
    assert (tmp_path / "new" / "export.json").is_file()


def test_what_is_not_uploaded(folder):
    with pytest.raises(UserError, match="is not the name of a repository"):
        hub.check(folder, "two words")
    with (folder / "README.md").open("a") as card:
        card.write("more\n")
    with pytest.raises(UserError, match=r"README.md is not what was exported"):
        hub.check(folder, "lab/digits")
