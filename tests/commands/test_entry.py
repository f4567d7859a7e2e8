"""The command ``fdtrain``, and the package as a wheel."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import forked
import pytest
from conftest import ROOT, environment
from models import DIGITS, filled, saved

import fdtrain
from fdtrain.commands import entry, evaluate
from fdtrain.errors import EXTRAS


def test_help(command):
    shown = command("--help")
    for name, what in entry.COMMANDS.items():
        assert f"    {name:<10}{what}\n" in shown
    assert command("--version").startswith(f"fdtrain {fdtrain.__version__}, torch {version('torch')}, ")


def test_help_of_each_command_needs_none_of_the_extras():
    absent = sorted({module for modules in EXTRAS.values() for module in modules})
    program = f"import sys; sys.modules.update(dict.fromkeys({absent}))\nfrom fdtrain.commands import entry\n"
    for name in entry.COMMANDS:
        program += f"try: assert entry.main([{name!r}, '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True)
    shown = done.stdout.split("usage: ")[1:]
    assert len(shown) == len(entry.COMMANDS), done.stderr
    for name, text in zip(entry.COMMANDS, shown):
        assert text.startswith(f"fdtrain {name} [-h]")
        assert f"fdtrain {name} " in text.split("\n\n", 1)[1]


def test_help_of_each_evaluation(command):
    """After DeepSpeed's own argument too, which its launcher puts first."""
    listed = " ".join(command("evaluate", "--help").split())
    for name, what in evaluate.COMMANDS.items():
        assert f"{name} {what}" in listed
        shown = command("--local_rank=1", "evaluate", name, "--help")
        assert shown.startswith(f"usage: fdtrain evaluate {name} [-h]")
        assert len(shown.splitlines()) > 10


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["train", "--config", "x", "--processes", "0"], "--processes must be at least 1"),
        (["export", "/nowhere", "x"], "no folder /nowhere"),
        (["tarin"], "invalid choice: 'tarin'"),
    ],
)
def test_mistakes(arguments, part, command):
    assert part in command(*arguments, rc=2)


@pytest.mark.parametrize("extra", ["train", "export"])
def test_a_missing_package_names_its_extra(extra, capsys, monkeypatch):
    def run(name, arguments, prog):
        raise ModuleNotFoundError("no module", name=EXTRAS[extra][0])

    monkeypatch.setattr(entry, "_run", run)
    assert entry.main(["plan"]) == 2
    assert f'pip install "fdtrain[{extra}]".' in capsys.readouterr().err


def test_a_run_on_two_processes(launch, command, monkeypatch):
    executed = []
    monkeypatch.setattr(os, "execv", lambda program, words: executed.extend(words))
    command("train", "--config", launch.config, "--processes", 2, "--set", "training.steps=2")
    done = forked.run(executed, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((launch.run_folder() / "environment.json").read_text())["processes"] == 2
    assert sorted(launch.losses()) == [1, 2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    # An archive has no list of files, and nothing but files.
    names = (
        tracked.stdout.split()
        if tracked.returncode == 0
        else ["setup.py", "pyproject.toml", "README.md", "configs", "fdtrain"]
    )
    for name in names:
        if name.startswith(("configs", "fdtrain")) or "/" not in name:
            source.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", ROOT / name, source / name], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (source / "build").exists()
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel: Path, folder: Path) -> Path:
    """The folder of the programs of an empty environment into which the wheel was installed."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def call(programs: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    # In a folder without a checkout, and without the variables that point to one.
    own = {"OMP_NUM_THREADS": "1", "PATH": f"{programs}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    command = [programs / "fdtrain", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=120)


def test_a_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("fdtrain/py.typed", "fdtrain/evaluation/page.html.jinja", "fdtrain/commands/entry.py"):
        assert name in names
    assert {name.partition("/")[0] for name in names} == {"fdtrain", f"fdtrain-{fdtrain.__version__}.dist-info"}
    # Every module, and what is not a module but is read by one.
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "fdtrain").rglob("*") if p.is_file()}
    assert {name for name in ours if "__pycache__" not in name} <= set(names)
    assert {f"fdtrain/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")} <= set(names)


def test_a_wheel_in_an_empty_environment_and_beside_its_packages(wheel, tmp_path):
    """Those of this environment, without the checkout that is installed in it, and without those of two extras."""
    programs = installed(wheel, tmp_path / "venv")
    assert "evaluate" in call(programs, tmp_path, "--help").stdout
    shown = call(programs, tmp_path, "--version").stdout
    assert shown.startswith(f"fdtrain {fdtrain.__version__}, torch not installed, deepspeed not installed, Python ")
    assert "baselines/edm " in call(programs, tmp_path, "configs").stdout
    assert call(programs, tmp_path, "configs", "--copy", "digits", ".").stdout == "digits.yaml\n"
    assert (tmp_path / "digits.yaml").read_bytes() == (ROOT / "configs" / "digits.yaml").read_bytes()
    refused = call(programs, tmp_path, "pack", "digits", "d")
    assert refused.returncode == 2
    assert "has no " in refused.stderr
    assert "Traceback" not in refused.stderr
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"{next(p for p in sys.path if p.endswith('site-packages'))}\n")
    packed = call(programs, tmp_path, "pack", "digits", "digits", "--workers", 1)
    assert packed.returncode == 0, packed.stderr
    assert "digits: digits: train: 1497 images" in packed.stdout
    saved(filled(DIGITS), tmp_path / "model")
    for extra in ("eval", "train"):
        for module in EXTRAS[extra]:
            (site / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    likelihood = ["nll", "model", "--data", "digits", "--images", 2, "--draws", 1, "--json", "nll.json"]
    for arguments in (["sample", "model", "--images", 2, "--steps", 2, "--out", "x.png"], ["evaluate", *likelihood]):
        done = call(programs, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").is_file()
    assert json.loads((tmp_path / "nll.json").read_text())["images"] == 2
    where = [programs / "python", "-c", "import fdtrain; print(fdtrain.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env={}, capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path))
