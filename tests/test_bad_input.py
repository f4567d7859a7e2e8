"""What a user gets wrong: one line that says what, where and what to do; exit code 2; nothing damaged."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, error_of
from jobs import Group, end


@pytest.fixture
def own_data(launch, digits):
    """A copy of the data set that a test may break, and a launch that reads it."""
    folder = launch.folder / "data"
    shutil.copytree(digits, folder)
    launch.config.write_text(launch.config.read_text().replace(str(digits), str(folder)))
    return folder


def set_level(path, level):
    """Of a pixel of the last image of a shard."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"\x93NUMPY") + 140] = level
    path.write_bytes(content)


def test_every_rank_ends_at_once_with_one_line(launch):
    """Through the launcher, with two ranks that both see the mistake."""
    said = launch("training.stepz=5", processes=2, rc=2).stderr
    assert error_of(said).endswith("unknown key 'stepz' in section 'training': did you mean 'steps'? (in --set).")
    assert not launch.run_folder().exists()


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("data.path=/nowhere", "no folder /nowhere with a dataset.json. Pack a data set into it"),
        ("data.train_split=trian", "has no split 'trian' (it has: train, test)"),
        ("data.test_split=exam", "no split 'exam' (it has: train, test). To train without held-out images, set"),
        ("training.lanes=5", "global_batch 32 is not divisible by lanes 5; set lanes to 4"),
        ("output=/dev/null/runs", "/dev/null/runs/small cannot be written (Not a directory)"),
        ("network.multipliers=[1, 1, 1, 1, 1]", "images of 8 pixels cannot be halved 4 times"),
    ],
)
def test_settings(refused, setting, part):
    assert part in refused(setting)


@pytest.mark.parametrize("script", ["fdtrain/main.py", "tools/pack.py"])
def test_a_python_without_the_packages(script):
    """-S: without its site-packages."""
    result = subprocess.run(
        [sys.executable, "-S", script, "--config", "x"], cwd=ROOT, env={}, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert "has no " in error_of(result.stderr)
    assert "`make environment` (or `make demo`) makes" in result.stderr


def test_restarts_that_would_meet_the_dead(refused, monkeypatch):
    """What torchrun sets for its processes."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    message = refused()
    assert "--max-restarts 3: its attempts share a store" in message
    assert "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in message


def test_a_missing_shard(launch, own_data):
    """By the second of two processes, each of which looks for its share, and said once."""
    (own_data / "train-000003.tar").unlink()
    message = error_of(launch(processes=2, rc=2).stderr)
    assert "train-000003.tar is listed in dataset.json but missing" in message


def test_a_shard_whose_bytes_have_changed(launch, own_data):
    """Found by its checksum, where that is asked for: the sample itself is still an image."""
    set_level(own_data / "train-000003.tar", 3)
    message = error_of(launch("data.verify=true", "training.steps=100", processes=0, rc=2).stderr)
    assert "train-000003.tar: checksum mismatch. Restore it" in message


def test_a_sample_that_one_rank_meets_ends_all(launch, own_data):
    """Without a launcher that would; the other says nothing of its own."""
    set_level(own_data / "train-000000.tar", 99)
    with Group(2, launch.command("training.steps=100", processes=0)) as jobs:
        message = error_of("".join(end(job) for job in jobs))
        assert sorted(job.returncode for job in jobs) == [1, 2]
    assert "train-000000.tar, sample '00000099': level 99, but the data set has levels 0 to 16" in message


def test_another_run_in_the_folder_of_one(launch, refused):
    launch("training.steps=2", processes=0)
    state = sorted((p, p.stat().st_mtime_ns) for p in launch.run_folder().rglob("*"))
    assert "already holds a run (step_00000002). Add --resume auto to go on with it" in refused()
    message = refused("network.channels=16", resume="auto")
    assert "holds another model than the configuration: network_options" in message
    assert "'channels': 8" in message
    assert "'channels': 16" in message
    assert "belongs to a run with other settings: seed 0 against 1" in refused("seed=1", resume="auto")
    assert state == sorted((p, p.stat().st_mtime_ns) for p in launch.run_folder().rglob("*"))


def test_a_loss_that_is_not_finite_stops_the_run(launch):
    said = launch("training.lr=1e30", "training.grad_clip=0", "training.steps=50", processes=0, rc=2).stderr
    message = error_of(said)
    assert "the gradient was unusable in 31 steps in a row up to step" in message
    assert "there is no checkpoint to return to. Lower training.lr" in message
