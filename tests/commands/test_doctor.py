"""What a machine can do, and the advice where it lacks something."""

import json

import pytest
import torch

from fdtrain.commands import doctor


@pytest.fixture
def found(command):
    """The findings by name."""
    return lambda: {finding["name"]: finding for finding in json.loads(command("doctor", "--json"))}


def test_without_a_gpu(found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    there = found()
    assert there["torch"]["found"] == torch.__version__
    assert there["GPUs"]["found"] == "none"
    assert "the CPU" in there["GPUs"]["advice"]
    assert "training.compile: false" in there["compiler"]["advice"]
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    assert "torch sees no GPU: install a torch for CUDA" in found()["GPUs"]["advice"]


def test_old_gpus_in_a_small_container(found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    usage = doctor.shutil.disk_usage(".")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage._replace(free=2**26))
    there = found()
    assert there["GPUs"]["found"] == "2 x Tesla T4 (7.5)"
    assert "fp16" in there["GPUs"]["advice"]
    assert "--shm-size" in there["/dev/shm"]["advice"]
    assert "another 'output'" in there["disk"]["advice"]


def test_what_is_not_installed(found, monkeypatch):
    def version(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    there = found()
    assert there["deepspeed"]["found"] == "not installed"
    assert 'pip install "fdtrain[train]"' in there["deepspeed"]["advice"]
    assert there["extras"]["found"] == "none"
    assert "export" in there["extras"]["advice"]


def test_load_and_clocks(found, monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    now = doctor.time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now - 3600)
    there = found()
    assert "OMP_NUM_THREADS=1" in there["threads"]["advice"]
    assert "+3600" in there["clock"]["found"]
    assert "NTP" in there["clock"]["advice"]


def test_lines_for_people(command):
    lines = command("doctor").splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == [finding.name for finding in doctor.findings()]
    assert all(line.strip().startswith("-> ") for line in lines if line.startswith(" "))
