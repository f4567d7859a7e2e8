import json
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.training.monitor import QUANTILES, MetricSums, Monitor, Stopwatch, window_metrics


def test_window_means():
    window = MetricSums(torch.device("cpu"))
    u = torch.tensor([0.0, 0.05, 0.95, 0.999999], dtype=torch.float64)
    window.add_images(torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 3.0, -2.0, -4.0]), u)
    window.add_step(torch.tensor(2.0), torch.tensor(0.0), first=True)
    window.add_step(torch.tensor(float("inf")), torch.tensor(1.0), first=True)  # fp16 overflowed: the step was skipped
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


def test_images_without_a_finite_bound_are_left_out_of_the_means():
    window = MetricSums(torch.device("cpu"))
    u = torch.tensor([0.05, 0.15], dtype=torch.float64)
    window.add_images(torch.tensor([1.0, float("nan")]), torch.tensor([2.0, float("nan")]), u)
    metrics = window_metrics(window.sums.tolist())
    assert (metrics["loss"], metrics["integrand/0"]) == (1.0, 2.0)
    assert "integrand/1" not in metrics
    assert "loss" not in window_metrics([0.0] * len(window.sums))


def test_a_full_disk_costs_the_log_and_not_the_run(tmp_path, monkeypatch, capsys):
    monitor = Monitor(tmp_path, 3, 0, first=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(monitor.board, "add_scalar", full)
        monitor.log(1, {"loss": 1.0})
        monitor.log(2, {"loss": 1.0})
    monitor.log(3, {"loss": 1.0})
    monitor.close()
    assert capsys.readouterr().err.count("the log has gaps from here on ([Errno 28] No space left on device)") == 1
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
