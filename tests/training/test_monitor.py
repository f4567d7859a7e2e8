import errno
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.diffusion.clocks import UNIFORM
from fdtrain.evaluation.pictures import save_png
from fdtrain.training.board import show_pictures
from fdtrain.training.log_file import LogFile
from fdtrain.training.metrics import QUANTILES, MetricSums, Stopwatch
from fdtrain.training.monitor import Monitor


def test_window_means():
    window = MetricSums(torch.device("cpu"), UNIFORM)
    u = torch.tensor([0.0, 0.05, 0.95, 0.999999], dtype=torch.float64)
    window.add_images(torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 3.0, -2.0, -4.0]), u)
    window.add_step(torch.tensor(2.0), torch.tensor(0.0))
    window.add_step(torch.tensor(float("inf")), torch.tensor(1.0))  # fp16 overflowed: the step was skipped
    metrics = window.read()
    assert metrics["bits_per_dim"] == 3.0
    assert metrics["gradient_norm"] == 2.0
    assert metrics["skipped_steps"] == 1
    assert {k: v for k, v in metrics.items() if k.startswith("integrand")} == {
        "integrand/0": 2.0,
        f"integrand/{QUANTILES - 1}": -3.0,
    }


@pytest.mark.parametrize("first", [True, False])
def test_the_rank_that_writes_alone_imports_tensorboard(tmp_path, first):
    program = f"""
import sys
from pathlib import Path
from fdtrain.training.monitor import Monitor
monitor = Monitor(Path({str(tmp_path)!r}), 3, first={first})
monitor.begin(0)
monitor.log(1, {{"bits_per_dim": 1.0}})
monitor.close()
print("tensorboard" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{first}\n"


def test_log_goes_to_file_and_tensorboard_and_forgets_what_is_done_again(tmp_path):
    def train(start, stop):
        monitor = Monitor(tmp_path, 10, first=True)
        monitor.begin(start)
        for step in range(start + 1, stop + 1):
            monitor.log(step, {"bits_per_dim": float(step)})
        monitor.image(stop, "samples", torch.zeros(1, 8, 8, dtype=torch.uint8))
        monitor.close()

    train(0, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tr')  # cut short by a crash
    train(4, 10)
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 11))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("train/bits_per_dim")] == list(range(1, 11))
    assert board.Tags()["images"] == ["samples"]


def test_other_ranks_write_nothing(tmp_path):
    monitor = Monitor(tmp_path, 10, first=False)
    monitor.begin(0)
    monitor.log(1, {"bits_per_dim": 1.0})
    monitor.show(1, {})
    monitor.say("x")
    monitor.progress()
    monitor.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("speed", "shown"), [(0.26, "images/s 0.3"), (9.94, "images/s 9.9"), (10.4, "images/s 10 ")])
def test_a_slow_run_shows_a_decimal_of_its_speed(tmp_path, capfd, speed, shown):
    monitor = Monitor(tmp_path, 10, first=True)
    rates = {"images_per_second": speed, "gradient_norm": 1.0, "lr": 1e-3, "data_wait": 0.0, "step_seconds": 1.0}
    monitor.begin(0)
    monitor.show(1, rates)
    monitor.close()
    said = capfd.readouterr()
    assert shown in said.out + said.err


def test_stopwatch_leaves_out_pauses():
    watch = Stopwatch()
    with watch.pause():
        time.sleep(0.2)
    with watch.wait():
        time.sleep(0.05)
    assert watch.elapsed < 0.2
    assert watch.waited == pytest.approx(0.05, abs=0.04)
    assert watch.steps == 1
    watch.restart()
    assert (watch.steps, watch.waited) == (0, 0)


def test_images_without_a_finite_bound_are_left_out_of_the_means():
    window = MetricSums(torch.device("cpu"), UNIFORM)
    u = torch.tensor([0.05, 0.15], dtype=torch.float64)
    window.add_images(torch.tensor([1.0, float("nan")]), torch.tensor([2.0, float("nan")]), u)
    metrics = window.read()
    assert (metrics["bits_per_dim"], metrics["integrand/0"]) == (1.0, 2.0)
    assert "integrand/1" not in metrics
    assert "bits_per_dim" not in window.read()


def log_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def every_step_once(folder, steps):
    assert [line["step"] for line in log_lines(folder)] == list(range(1, steps + 1))
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("train/bits_per_dim")] == list(range(1, steps + 1))


def in_halves(path, limit):
    """An append-mode file of a disk that takes half of each write, and from ``limit`` bytes of room on nothing."""

    class File(io.FileIO):
        def write(self, data):
            if len(data) < limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data)[: max(1, len(data) // 2)])

    return File(path, "a+")


def test_a_disk_that_fills_and_is_freed_costs_nothing_of_the_log(tmp_path, monkeypatch, capsys):
    """Each write fails in the middle of a line, as a full disk has it."""
    monitor = Monitor(tmp_path, 9, first=True)
    monitor.begin(0)
    true_open = Path.open
    for step in range(1, 10):
        with monkeypatch.context() as patch:
            if step in (2, 3, 4, 7):
                patch.setattr(Path, "open", lambda path, *_, **__: in_halves(path, 8))
            monitor.log(step, {"bits_per_dim": float(step)})
        if step in (2, 3, 4, 7):
            with true_open(tmp_path / "metrics.jsonl", "rb") as file:
                assert file.read().endswith(b"}\n")
    monitor.close()
    every_step_once(tmp_path, 9)
    output = capsys.readouterr().err
    assert output.count("the log cannot be written ([Errno 28] No space left on device); it waits in memory") == 2
    assert output.count("the log is written again.") == 2


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_return_to_a_checkpoint_while_the_disk_is_away(tmp_path, monkeypatch):
    monitor = Monitor(tmp_path, 9, first=True)
    monitor.begin(0)
    for step in range(1, 5):
        monitor.log(step, {"bits_per_dim": 0.0})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        monitor.log(5, {"bits_per_dim": 0.0})
        monitor.rewind(2)
        monitor.log(3, {"bits_per_dim": 1.0})
    for step in range(4, 7):
        monitor.log(step, {"bits_per_dim": 1.0})
    monitor.close()
    every_step_once(tmp_path, 6)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [e.value for e in board.Scalars("train/bits_per_dim")] == [0, 0, 1, 1, 1, 1]


def test_a_log_that_was_replaced_meanwhile_is_not_padded(tmp_path):
    log = LogFile(tmp_path / "log")
    log.write(b"before")
    log.flush()
    (tmp_path / "log").write_bytes(b"")
    log.write(b"after")
    log.flush()
    assert (tmp_path / "log").read_bytes() == b"after"


def test_pictures_of_an_evaluation_leave_the_run_s_curves(tmp_path):
    monitor = Monitor(tmp_path, 4, first=True)
    monitor.begin(0)
    for step in range(1, 5):
        monitor.log(step, {"bits_per_dim": 0.0})
    monitor.close()
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "grid.png")
    show_pictures(tmp_path, 2, {"grid": tmp_path / "grid.png"})
    every_step_once(tmp_path, 4)
