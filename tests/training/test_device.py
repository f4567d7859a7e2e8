import time

import pytest
import torch

from fdtrain.config import Training
from fdtrain.errors import UserError
from fdtrain.preparation import prepare
from fdtrain.training import device as devices

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def turing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@pytest.mark.parametrize(
    ("settings", "device", "part"),
    [
        ({"precision": "bf16"}, GPU, r"training.precision: Tesla T4 \(compute capability 7.5\) has no bf16.*fp16 or"),
        ({"precision": "fp32", "tf32": True}, GPU, "training.tf32: Tesla T4 .* Set training.tf32 to false"),
        ({"precision": "fp32", "tf32": True}, CPU, "training.tf32: the CPU has no TF32"),
    ],
)
def test_a_precision_that_the_device_lacks(turing, settings, device, part):
    with pytest.raises(UserError, match=part):
        devices.check_precision(Training(steps=1, **settings), device)


def test_precisions_that_there_are(turing, monkeypatch):
    devices.check_precision(Training(steps=1, precision="fp16"), GPU)
    for precision in ("fp32", "bf16", "fp16"):
        devices.check_precision(Training(steps=1, precision=precision), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    devices.check_precision(Training(steps=1, precision="bf16", tf32=True), GPU)


def test_refused_before_anything_starts(launch, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(UserError, match=r"training\.tf32: the CPU has no TF32"):
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


def test_the_matrix_rate_is_that_of_a_product():
    """Against one product of another size, within what a busy machine may do."""
    side = 384
    a = torch.ones(side, side)
    once = min(_seconds(a) for _ in range(20))
    assert devices.matrix_rate(CPU, "fp32") == pytest.approx(2 * side**3 / once, rel=0.95)


def _seconds(a):
    begin = time.perf_counter()
    a @ a
    return time.perf_counter() - begin


def test_a_cpu_without_half_precision_units_is_told_of(monkeypatch):
    monkeypatch.setattr(devices, "matrix_rate", lambda device, precision: 100e9)
    warning = devices.lacks_units(CPU, "bf16", rate=10e9)
    assert "10 times slower in bf16" in warning
    assert "training.precision: fp32" in warning
    assert devices.lacks_units(CPU, "bf16", rate=200e9) is None
    assert devices.lacks_units(CPU, "fp32", rate=10e9) is None
    assert devices.lacks_units(GPU, "bf16", rate=10e9) is None
