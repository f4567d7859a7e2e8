import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, environment

from fdtrain.config import TrainingConfig
from fdtrain.errors import UserError
from fdtrain.training import hardware as devices

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "settings", "device", "part"),
    [
        (
            (7, 5),
            {"precision": "bf16"},
            GPU,
            "no bf16 here, .* 8.0 .*: Tesla T4 .* Set training.precision to fp16 or fp32",
        ),
        (
            (7, 5),
            {"precision": "fp32", "tf32": True},
            GPU,
            "no TF32 here, .* Set training.tf32 to false",
        ),
        ((8, 0), {"precision": "bf16", "tf32": True}, CPU, "training.tf32: no TF32 here"),
        ((7, 5), {"precision": "fp16"}, GPU, None),
        ((8, 0), {"precision": "bf16", "tf32": True}, GPU, None),
        ((7, 5), {"precision": "bf16"}, CPU, None),
    ],
)
def test_precisions_that_there_are(monkeypatch, capability, settings, device, part):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with nullcontext() if part is None else pytest.raises(UserError, match=part):
        devices.check_precision(TrainingConfig(steps=1, **settings), device)


def test_refused_before_anything_starts(launch, refused, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert "training.tf32: no TF32 here" in refused("training.tf32=true")
    assert not launch.run_folder().exists()


def test_tf32_is_off_for_reports_and_on_again():
    try:
        devices.set_tf32(True)
        with devices.exact_float32():
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        devices.set_tf32(False)


def test_a_cpu_without_half_precision_units_is_told_of(monkeypatch):
    monkeypatch.setattr(devices, "matrix_rate", lambda device, precision: 100e9)
    warning = devices.lacks_units(CPU, "bf16", rate=10e9)
    assert "10 times slower in bf16" in warning
    assert "training.precision: fp32" in warning
    assert devices.lacks_units(CPU, "bf16", rate=200e9) is None
    assert devices.lacks_units(CPU, "fp32", rate=10e9) is None
    assert devices.lacks_units(GPU, "bf16", rate=10e9) is None


FAULTS = """
import resource, torch
from fdtrain.training.hardware import keep_freed_memory
keep_freed_memory()
faults = []
for i in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step = [torch.ones(2**20) for _ in range(30)]
    del step
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept():
    """Of ten times that 120 MiB are asked for in pieces, some find them there: hardly one of 30,720 pages is mapped
    anew. Not each does from the second on, for what else is asked for between splits pieces until they have all been
    found a place."""
    # Without this it would be left to luck.
    variables = {**environment(), "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    assert int(subprocess.check_output([sys.executable, "-c", FAULTS], cwd=ROOT, env=variables)) < 3072
