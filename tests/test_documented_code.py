"""What the documentation tells to run: its Python runs, and its commands can be parsed."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint_of
from conftest import ROOT
from models import DIGITS, filled, saved

from fdtrain.commands import entry
from fdtrain.config import load_config
from fdtrain.export.write import export

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HERE = {
    '"cuda"': '"cpu"',
    "range(2000)": "range(20)",
    '"training.steps": 200': '"training.steps": 2, "monitor": {"evaluate_every": None, "sample_every": None}',
}
"""What is replaced: a device that a machine may lack, and what takes long."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def workplace(tmp_path, digits, monkeypatch) -> Path:
    """A folder with what the pages speak of: data, a run and its exports, of a model that is not trained."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits)
    model = filled(DIGITS)
    checkpoint_of(tmp_path / "runs" / "digits", model, parts=1)
    saved(model, tmp_path / "export" / "digits")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, workplace, monkeypatch):
    # A network from elsewhere, of any kind.
    monkeypatch.setattr(torch.hub, "load", lambda repository, name: torch.nn.AdaptiveAvgPool2d(1))
    if page.name == "export.md":
        export("export/digits", "export/digits-diffusers", "diffusers")
    # What the README speaks of as the reader's own.
    names = {"x": torch.zeros(2, *DIGITS.shape), "t": 0.5}
    for number, block in enumerate(blocks(page)):
        for there, here in HERE.items():
            block = block.replace(there, here)
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def commands(page: Path) -> list[tuple[str, str, list[str]]]:
    """The lines of a page that run fdtrain, with or without a launcher; the command and its arguments."""
    text = page.read_text().replace("\\\n", " ")
    fenced, indented = r"^```(\w*)\n(.*?)^```", r"^((?: {4}\S.*\n)+)"
    found = []
    for language, in_fence, apart in re.findall(f"{fenced}|{indented}", text, re.DOTALL | re.MULTILINE):
        for line in (apart if language not in ("", "sh") else in_fence or apart).splitlines():
            if re.match(r" *([A-Z_]+=\S+ )*(fdtrain|python|deepspeed|torchrun) ", line):
                words = shlex.split(line, comments=True)
                found += [(line.strip(), *command) for command in [_command(words)] if command]
    return found


def _command(words: list[str]) -> tuple[str, list[str]] | None:
    for i, word in enumerate(words):
        if word == "fdtrain" and (i == 0 or words[i - 1] in ("-m", "--module")):
            return words[i + 1], words[i + 2 :]
        if word in ("fdtrain/main.py", "fdtrain.main"):
            return "train", words[i + 1 :]
        if script := re.fullmatch(r"tools/(\w+)\.py", word):
            return script[1], words[i + 1 :]
    return None


def test_commands_are_found():
    """In fences and indented text, behind launchers and variables."""
    found = {line: command for page in PAGES for line, *command in commands(page)}
    assert len(found) > 60
    elastic = next(line for line in found if "--rdzv-endpoint" in line)
    assert found[elastic] == ["train", ["--config", "...", "--resume", "auto"]]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_parsed(page, capsys):
    for line, name, arguments in commands(page):
        assert name in entry.COMMANDS, line
        try:
            _, parsed = entry.parse(name, arguments)
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")
        if name == "train" and all((ROOT / file).is_file() for file in parsed.config):
            load_config([ROOT / file for file in parsed.config], parsed.set)
