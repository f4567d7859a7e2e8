import platform
import subprocess
import sys
from itertools import repeat

import pytest
import torch
from conftest import ROOT, environment

from fdtrain.config import TrainingConfig
from fdtrain.errors import UserError
from fdtrain.training import hardware as devices
from fdtrain.training.plan import prepare

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def turing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@pytest.mark.parametrize(
    ("settings", "device", "part"),
    [
        ({"precision": "bf16"}, GPU, "training.precision: no bf16 here, .* 8.0 .*: Tesla T4 .* to fp16 or fp32"),
        ({"precision": "fp32", "tf32": True}, GPU, "training.tf32: no TF32 here, .* Set training.tf32 to false"),
        ({"precision": "fp32", "tf32": True}, CPU, "training.tf32: no TF32 here"),
    ],
)
def test_a_precision_that_the_device_lacks(turing, settings, device, part):
    with pytest.raises(UserError, match=part):
        devices.check_precision(TrainingConfig(steps=1, **settings), device)


def test_precisions_that_there_are(turing, monkeypatch):
    devices.check_precision(TrainingConfig(steps=1, precision="fp16"), GPU)
    for precision in ("fp32", "bf16", "fp16"):
        devices.check_precision(TrainingConfig(steps=1, precision=precision), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    devices.check_precision(TrainingConfig(steps=1, precision="bf16", tf32=True), GPU)


def test_refused_before_anything_starts(launch, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(UserError, match=r"training\.tf32: no TF32 here"):
        prepare(str(launch.config), ["training.tf32=true"], resume=False)
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


def test_the_matrix_rate_is_that_of_the_largest_product_in_time(monkeypatch):
    """Sides are doubled until a product takes a hundredth of a second."""
    asked = []

    def products(device, precision, side):
        asked.append(side)
        return repeat(side**3 * 1e-10)

    monkeypatch.setattr(devices, "_products", products)
    assert devices.matrix_rate(CPU, "fp32") == pytest.approx(2e10 * torch.get_num_threads())
    assert asked == [128, 256, 512, 512]


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


def test_devices_of_different_kinds_are_told_of(launch):
    result = launch("training.steps=1", processes=2, faults={"devices": ["H100", "A100"]})
    told = "warning: the devices of this launch differ (1 x H100, 1 x A100): every step waits for the slowest."
    assert result.stderr.count(told) == 1


def test_the_device_has_a_name(turing):
    assert devices.name(GPU) == "Tesla T4"
    assert devices.name(CPU).strip()
