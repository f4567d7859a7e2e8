"""That the benchmarks which need a GPU say so, and that their code has run."""

import sys

import pytest
import torch
from conftest import ROOT
from models import DIGITS


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(gpu, monkeypatch):
    page = gpu.PAGE.read_text()
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no GPU here, so nothing is measured"):
        gpu.main()
    assert gpu.PAGE.read_text() == page


def test_a_measurement_and_its_table(gpu, tmp_path):
    row = gpu.measure("tiny", DIGITS, gpu.VARIANTS[0], 1e12, images=4, steps=2, device=torch.device("cpu"))
    assert (row.network, row.variant, row.images) == ("tiny", "fp32", 4)
    assert row.images_per_second > 0
    assert row.utilisation == pytest.approx(row.tflops)
    page = tmp_path / "page.md"
    page.write_text("# Figures\n\n\n")
    gpu.append(page, gpu.table("Some GPU", {"fp32": 50e12, "bf16": 800e12}, [row], ["Left out for time: x."]))
    lines = page.read_text().splitlines()
    assert lines[:3] == ["# Figures", "", lines[2]]
    assert lines[2].startswith("### Some GPU, 20")
    assert "Matrix products, TFLOP/s: fp32 50.0, bf16 800.0." in lines[3]
    assert lines[7].startswith("| `tiny` | fp32 | 4 | ")
    assert lines[7].count("|") == lines[5].count("|")
    assert lines[-1] == "Left out for time: x."


def test_fewer_images_where_they_do_not_fit(gpu, monkeypatch):
    original = gpu.bare_loop

    def small(spec, images, *rest):
        if images > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(spec, images, *rest)

    monkeypatch.setattr(gpu, "bare_loop", small)
    row = gpu.measure("tiny", DIGITS, gpu.VARIANTS[2], 1e12, images=8, steps=1, device=torch.device("cpu"))
    assert row.images == 2
