"""The files of docs/extending.md, as they are there, in a run from its training to its exports; and that nothing is
executed but what is allowed."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from conftest import ROOT, fork
from models import DIGITS, filled, saved

import fdtrain
from fdtrain import plugins
from fdtrain.config import load_config
from fdtrain.diffusion.predictors import PREDICTORS
from fdtrain.errors import UserError
from fdtrain.evaluation.samples import Sampler
from fdtrain.export.write import export
from fdtrain.networks.model import CODE

FILES = dict(re.findall(r"```(?:py|yaml)\n# (\S+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL))
NAMES = yaml.safe_load(FILES["mine.yaml"])["plugins"]
MODEL = ["my_network.py", "my_formulation.py"]
SHORT = {"steps": 4, "global_batch": 32, "lanes": 8, "precision": "fp32", "warmup_steps": 0}


@contextmanager
def apart() -> Iterator[None]:
    """What is registered within ends with it."""
    tables = [*plugins.FAMILIES.values(), plugins._plugins, CODE]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, content in zip(tables, before):
            table.clear()
            table.update(content)


@pytest.fixture(autouse=True)
def _apart():
    with apart():
        yield


def train(folder: Path, data: Path, *settings, allowed: list[Path] | None = None, rc=0, **options) -> str:
    allowed = [folder / name for name in NAMES] if allowed is None else allowed
    words = [word for path in allowed for word in ("--allow-code", str(path))]
    command = ["fdtrain/main.py", "--config", str(folder / "mine.yaml"), "--resume", "auto", *words]
    short = [f"training.{key}={value}" for key, value in SHORT.items()]
    places = ["monitor.log_every=1", f"output={folder / 'runs'}", f"data.path={data}"]
    result = fork([*command, "--set", *places, *short, *settings], folder, **options)
    assert result.returncode == rc, result.stdout + result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits) -> Path:
    """The page's files, and the run that they make."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    train(folder, digits)
    return folder


@pytest.fixture
def run(folder) -> Path:
    return folder / "runs" / "mine"


def copies(run: Path, names: list[str] = MODEL) -> list[Path]:
    return [run / "plugins" / name for name in names]


def options(paths: list[Path]) -> list[object]:
    return [word for path in paths for word in ("--allow-code", path)]


def test_the_parts_of_the_page_train_and_are_recorded(folder, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/bits_per_dim" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line.get("weights/norm", 0) > 0] == [4]
    recorded = json.loads((run / "environment.json").read_text())["plugins"]
    assert recorded == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}
    assert [path.read_text() for path in copies(run, NAMES)] == [FILES[name] for name in NAMES]
    described = json.loads((run / "checkpoints" / "step_00000004" / "model.json").read_text())
    assert described["code"] == {name: recorded[name] for name in sorted(MODEL)}


def test_a_run_is_evaluated_by_its_copies_alone_where_they_are_allowed(run, command):
    message = command("evaluate", "nll", run, rc=2)
    assert "needs code, which is executed only if you allow it" in message
    assert all(f"--allow-code {copy}" in message for copy in copies(run))
    assert "ELBO" in command("evaluate", "nll", run, "--draws", "2", *options(copies(run)))


def test_a_solver_of_ones_own_samples(folder, run):
    model = fdtrain.load(run, allow_code=[*copies(run), folder / "my_solver.py"])
    assert torch.equal(model.sample(4, steps=5, solver="my_ddim"), model.sample(4, steps=5, solver="ddim"))
    sha256 = CODE["my_solver.py"][:12]
    assert Sampler("my_ddim").describe()["solver"] == f"my_ddim of my_solver.py, SHA-256 {sha256}"


def test_a_run_resumes_with_its_copies_and_not_with_other_code(folder, run, digits, tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text(FILES[name] + "\n# Changed.\n")
    # Of the network the model itself knows, of the callback the run.
    for other, message in (
        ("my_network.py", "is of other code than was allowed"),
        ("my_callback.py", "other settings"),
    ):
        allowed = [tmp_path / name if name == other else folder / name for name in NAMES]
        said = train(folder, digits, "training.steps=6", allowed=allowed, rc=2)
        assert message in said
        assert said.count("\n") == 1
    assert "step 6/6" in train(folder, digits, "training.steps=6", allowed=copies(run, NAMES))


BRANCHING = """
from fdtrain.plugins import network
from torch import nn

@network("branching")
class Branching(nn.Linear):
    def __init__(self, image_channels, image_size, levels, classes, input_channels, checkpointing):
        super().__init__(image_size, image_size)

    def forward(self, x, t, label=None):
        return super().forward(x) if x.sum() > 0 else x
"""


def test_a_network_without_a_graph_is_told_in_one_line(tmp_path):
    (tmp_path / "own.py").write_text(BRANCHING)
    plugins.execute([tmp_path / "own.py"])
    spec = replace(DIGITS, network="branching", network_options={}, code={"own.py": CODE["own.py"]})
    saved(filled(spec), tmp_path / "model")
    with pytest.raises(UserError, match=r"code \(own\.py\) has no form torch_export: ") as error:
        export(tmp_path / "model", tmp_path / "e", "torch_export")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "e").exists()


def test_an_export_has_the_files_and_executes_none(run, tmp_path, command):
    allowed = options(copies(run))
    with apart():
        command("export", run, tmp_path / "e", *allowed)
        command("export", run, tmp_path / "t", "--format", "torch_export", *allowed)
        assert "torch_export" in command("export", run, tmp_path / "d", "--format", "diffusers", *allowed, rc=2)
    assert 'fdtrain.load("e", allow_code=["e/plugins/my_' in (tmp_path / "e" / "README.md").read_text()
    with pytest.raises(UserError, match=f"--allow-code {copies(tmp_path / 'e')[0]}"):
        fdtrain.load(tmp_path / "e")
    model = fdtrain.load(tmp_path / "e", allow_code=copies(tmp_path / "e"))
    field = torch.export.load(tmp_path / "t" / "model.pt2").module()
    x, t = torch.randn(2, *model.spec.shape), torch.tensor([0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(field(x, t), model.field(x, t))


def test_a_run_from_elsewhere_executes_nothing(run, tmp_path):
    """Neither opened, nor named as a configuration; and files that are allowed must be those that were recorded."""
    shutil.copytree(run, tmp_path / "run")
    touched = tmp_path / "touched"
    for copy in copies(tmp_path / "run", NAMES):
        copy.write_text(f"import pathlib\npathlib.Path({str(touched)!r}).touch()\n{copy.read_text()}")
    with pytest.raises(UserError, match="executed only if you allow it"):
        fdtrain.load(tmp_path / "run")
    with pytest.raises(UserError, match="executed only if you allow it"):
        fdtrain.train(tmp_path / "run" / "config.yaml")
    assert not touched.exists()
    with pytest.raises(UserError, match="is of other code than was allowed"):
        fdtrain.load(tmp_path / "run", allow_code=copies(tmp_path / "run"))
    # What the user has named was executed.
    assert touched.exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.options.widht=3", "network: options: got an unexpected keyword argument 'widht'"),
        ("network.width=3", "unknown key 'width' in section 'network' (it has: name, class_conditional"),
        ("plugins=[my_network.py, my_callback.py]", "it uses what is in my_formulation.py; name that in plugins"),
        ("monitor.callbacks=[{name: weight_norm, every: 1}]", "options: missing a required argument: 'prefix'"),
    ],
)
def test_mistakes_in_what_a_configuration_says_of_plugins(setting, message, folder):
    plugins.execute([folder / name for name in NAMES])
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_config(folder / "mine.yaml", [setting])
    assert "\n" not in str(error.value)


def test_a_file_that_was_changed_is_executed_anew(tmp_path):
    """And nothing is left of what it was; the same file is not executed again, and another may not take its names."""
    file, other = tmp_path / "mine.py", tmp_path / "other.py"
    for name in ("first", "second"):
        file.write_text(f"from fdtrain.plugins import predictor\n@predictor('{name}')\ndef f(s): ...\n")
        plugins.execute([file])
        assert name in PREDICTORS
    assert "first" not in PREDICTORS
    made = PREDICTORS["second"]
    plugins.execute([file])
    assert PREDICTORS["second"] is made
    other.write_text(file.read_text())
    with pytest.raises(UserError, match=r"the predictor 'second' is of mine\.py already"):
        plugins.execute([other])
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=r"mine\.py: rename it: names must differ"):
        plugins.execute([file, tmp_path / "sub" / "mine.py"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_here", "line 1, cannot be executed (ModuleNotFoundError: No module named 'nothing_here')"),
        ("\ndef f(:", "line 2, cannot be executed (SyntaxError"),
        ("raise SystemExit(0)", "line 1, cannot be executed (SystemExit: 0)"),
        ("x = 1", "registers nothing"),
        ("from fdtrain.plugins import *\n@predictor('eps')\ndef f(s): ...", "the predictor 'eps' is fdtrain's own"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(text, message, tmp_path):
    (tmp_path / "bad.py").write_text(text)
    before = {family: set(table) for family, table in plugins.FAMILIES.items()}
    with pytest.raises(UserError, match=re.escape(message)) as error:
        plugins.execute([tmp_path / "bad.py"])
    assert "\n" not in str(error.value)
    assert {family: set(table) for family, table in plugins.FAMILIES.items()} == before


@pytest.mark.parametrize(
    ("package", "options", "log"), [("wandb", {"project": "digits"}, "log"), ("mlflow", {"uri": "here"}, "log_metrics")]
)
def test_logging_elsewhere(package, options, log, folder, tmp_path, monkeypatch):
    """By packages of straw."""
    monkeypatch.setitem(sys.modules, package, straw := MagicMock())
    plugins.execute([folder / f"log_to_{package}.py"])
    monitor = SimpleNamespace(first=True, folder=tmp_path, newest={"train/bits_per_dim": 2.0})
    plugins.CALLBACKS[package](SimpleNamespace(monitor=monitor, settings={"seed": 1}), **options)(7, None)
    getattr(straw, log).assert_called_once_with(monitor.newest, 7)
    assert str({"seed": 1}) in str(straw.mock_calls)
