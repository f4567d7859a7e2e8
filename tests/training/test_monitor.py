import json
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.training.monitor import QUANTILES, Monitor, Stopwatch, Window, window_metrics


def test_window_means():
    window = Window(torch.device("cpu"))
    u = torch.tensor([0.0, 0.05, 0.95, 0.999999], dtype=torch.float64)
    window.add_images(torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 3.0, -2.0, -4.0]), u)
    window.add_step(torch.tensor(2.0), first=True)
    window.add_step(float("inf"), first=True)  # fp16 overflowed: the step was skipped
    metrics = window_metrics(window.sums.tolist())
    assert metrics["loss"] == 3.0
    assert metrics["gradient_norm"] == 2.0
    assert metrics["skipped_steps"] == 1
    assert {k: v for k, v in metrics.items() if k.startswith("integrand")} == {
        "integrand/0": 2.0,
        f"integrand/{QUANTILES - 1}": -3.0,
    }


def test_log_goes_to_file_and_tensorboard_and_forgets_what_is_done_again(tmp_path):
    def train(start, stop):
        monitor = Monitor(tmp_path, 10, start, first=True)
        for step in range(start + 1, stop + 1):
            monitor.log(step, {"loss": float(step)})
        monitor.image(stop, "samples", torch.zeros(1, 8, 8, dtype=torch.uint8))
        monitor.text("configuration", "name: x")
        monitor.close()

    train(0, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tr')  # cut short by a crash
    time.sleep(1.1)  # TensorBoard orders a run's files by second
    train(4, 10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("train/loss")] == list(range(1, 11))
    assert board.Tags()["images"] == ["samples"]
    assert "configuration/text_summary" in board.Tags()["tensors"]


def test_other_ranks_write_nothing(tmp_path):
    monitor = Monitor(tmp_path, 10, 0, first=False)
    monitor.log(1, {"loss": 1.0})
    monitor.show(1, {})
    monitor.say("x")
    monitor.progress()
    monitor.close()
    assert list(tmp_path.iterdir()) == []


def test_stopwatch_leaves_out_pauses():
    watch = Stopwatch()
    with watch.pause():
        time.sleep(0.2)
    with watch.wait():
        time.sleep(0.05)
    assert watch.elapsed < 0.2
    assert watch.waited == pytest.approx(0.05, abs=0.04)
