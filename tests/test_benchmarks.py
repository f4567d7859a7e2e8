"""That the benchmarks which need a GPU say so, that their code has run, and the bytes between two processes."""

import json
import sys

import forked
import pytest
import torch
from conftest import ROOT, environment
from models import DIGITS


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def test_the_pieces_of_a_first_gpu_are_done_once_each(monkeypatch, tmp_path, capfd):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import first_gpu

    log, mark = tmp_path / "metrics.jsonl", tmp_path / "mark"
    window = {"step": 7, "train/images_per_second": 90.0, "train/bits_per_dim": 3.5, "train/data_wait": 0.01}
    lines = [window | {"train/memory_gib": 2.0}, {"step": 7, "test/bits_per_dim": 3}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    once = [sys.executable, "-c", f"open({str(mark)!r}, 'x'); print('first'); print('4 passed')"]
    wanted = [
        first_gpu.Piece("good", [[sys.executable, "-c", ""], once], 1, first_gpu.last_line),
        first_gpu.Piece("bad", [[sys.executable, "-c", "raise SystemExit(3)"], once], 1, first_gpu.last_line),
        first_gpu.Piece("long", [[sys.executable, "-c", "import time; time.sleep(60)"]], 0.02, first_gpu.last_line),
        first_gpu.Piece("run", [[sys.executable, "-c", ""]], 1, lambda output: first_gpu.trained(log)),
    ]
    for _ in range(2):
        assert not first_gpu.carry_out(wanted, tmp_path)
    told = capfd.readouterr().out
    assert told.count("good: up to 1 minutes") == told.count("run: up to 1 minutes") == 1
    assert told.count("bad: not done") == told.count("long: not done") == 2
    rows = first_gpu.table(wanted, tmp_path, "Some GPU").splitlines()[5:]
    assert [row.split(" | ")[3] for row in rows] == [
        "4 passed |",
        "not done |",
        "not done |",
        "step 7: 3.5000 bits/dim, 90 images/s, nan% of the matrix rate, 1.0% waited for data, 2.0 GiB |",
    ]
    assert first_gpu.carry_out([wanted[0], wanted[3]], tmp_path)


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


def test_each_step_of_the_bare_loop_trains_the_network(gpu, monkeypatch):
    import bare_loop

    made, model = [], bare_loop.Model
    monkeypatch.setattr(bare_loop, "Model", lambda *given: made.append(model(*given)) or made[0])
    loop = gpu.bare_loop(DIGITS, 4, torch.device("cpu"), "bf16")
    next(loop)
    before = [parameter.detach().clone() for parameter in made[0].parameters()]
    next(loop)
    assert not all(torch.equal(a, b) for a, b in zip(before, made[0].parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in made[0].parameters())


def test_the_bytes_of_real_steps():
    """Two processes, ZeRO 0, 1 and 2, counted where torch.distributed is called: within 5 % of a ring's least."""
    done = forked.run(["benchmarks/scaling.py", "--volume", "--images", "2"], cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
    ratios = [float(line.split()[-4]) for line in done.stdout.splitlines() if line.startswith("ZeRO")]
    assert len(ratios) == 3
    assert all(0.99 < ratio < 1.05 for ratio in ratios)
