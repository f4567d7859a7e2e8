import errno
import io
import json
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.config import Config
from fdtrain.diffusion.clocks import UNIFORM
from fdtrain.evaluation.pictures import save_png
from fdtrain.training.board import show_pictures
from fdtrain.training.log_file import LogFile
from fdtrain.training.metrics import QUANTILES, MetricSums
from fdtrain.training.monitor import Monitor


def monitor_of(folder, steps=9, first=True, **settings) -> Monitor:
    """Of a run in that folder."""
    content = {"name": folder.name, "output": folder.parent, "data": {"path": "d"}, "training": {"steps": steps}}
    about = {"dataset": "digits", "parameters": 123, "features": "digits-features"}
    return Monitor(Config.model_validate(content | settings), first, about)


def test_window_means():
    """Images without a finite bound are left out."""
    window, nan = MetricSums(torch.device("cpu"), UNIFORM), float("nan")
    u = torch.tensor([0.0, 0.05, 0.15, 0.95, 0.999999], dtype=torch.float64)
    window.add_pass(torch.tensor([1.0, 2.0, nan, 3.0, 6.0]), torch.tensor([1.0, 3.0, nan, -2.0, -4.0]), u)
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
    assert "bits_per_dim" not in window.read()


def train(folder, start, stop):
    monitor = monitor_of(folder, 10)
    monitor.begin(start)
    for step in range(start + 1, stop + 1):
        monitor.log(step, {"bits_per_dim": float(step)})
    monitor.image(stop, "samples", torch.zeros(1, 8, 8, dtype=torch.uint8))
    monitor.close()


def board_of(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def every_step_once(folder, steps):
    logged = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = [event.step for event in board_of(folder).Scalars("train/bits_per_dim")]
    assert logged == shown == list(range(1, steps + 1))


def test_log_goes_to_file_and_tensorboard_and_forgets_what_is_done_again(tmp_path):
    """Pictures of an evaluation leave its curves."""
    train(tmp_path, 0, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tr')  # cut short by a crash
    train(tmp_path, 4, 10)
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "grid.png")
    show_pictures(tmp_path, 2, {"grid": tmp_path / "grid.png"})
    every_step_once(tmp_path, 10)
    assert board_of(tmp_path).Tags()["images"] == ["samples", "evaluation/grid"]


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
    monitor = monitor_of(tmp_path)
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


def test_a_log_that_was_replaced_meanwhile_is_not_padded(tmp_path):
    log = LogFile(tmp_path / "log")
    log.write(b"before")
    log.flush()
    (tmp_path / "log").write_bytes(b"")
    log.write(b"after")
    log.flush()
    assert (tmp_path / "log").read_bytes() == b"after"
