import json

import forked
import pytest
import torch
from conftest import ROOT, environment
from test_monitor import monitor_of

from fdtrain.errors import UserError
from fdtrain.training.metrics import Stopwatch, Utilisation
from fdtrain.training.profile import Profiler, alone, parse_steps


def test_steps_to_trace():
    assert list(parse_steps("10:13", 20)) == [10, 11, 12, 13]
    assert list(parse_steps("3", 3)) == [3]
    assert not parse_steps(None, 5)


@pytest.mark.parametrize("text", ["", "3:2", "0:2", "5:21", "a:b", "1:2:3"])
def test_steps_that_are_none(text):
    with pytest.raises(UserError, match=r"--profile .*expected FIRST:LAST, steps of this run's 1 to 20"):
        parse_steps(text, 20)


def test_communication_that_nothing_hides():
    kernels = [
        ("ncclDevKernel_AllReduce", 0.0, 10.0),
        ("nccl:all_reduce", 0.0, 10.0),
        ("gemm", 5.0, 12.0),
        ("ncclDevKernel_AllReduce", 20.0, 24.0),
        ("norm", 11.0, 21.0),
    ]
    assert alone(kernels, "cuda") == 5 + 3
    calls = [("gloo:all_reduce", 0.0, 4.0), ("gloo:reduce", 3.0, 6.0), ("aten::mm", 0.0, 20.0)]
    assert alone(calls, "cpu") == 6
    assert alone([], "cuda") == 0


def test_a_disk_that_refuses_costs_the_trace_and_not_the_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("no folder")
    profiler = Profiler(tmp_path / "profile", range(1, 2), torch.device("cpu"), Stopwatch())
    with profiler.step(1):
        torch.ones(2).sum()
    assert "profile/steps_1_1.pt.trace.json cannot be written (File exists)" in caplog.text


def test_speed_and_utilisation():
    speed = Utilisation(flops_per_image=2 * 10**9, devices=4, rate=4e12).speed(1000.0)
    assert speed == {
        "images_per_second": 1000.0,
        "images_per_second_per_device": 250.0,
        "gflop_per_image": 2.0,
        "tflops_per_device": 0.5,
        "utilisation": 0.5,
    }


def test_a_disturbed_measurement_gives_no_utilisation(tmp_path, capsys):
    """More than the whole of a device: its rate was measured while something else used it."""
    speed = Utilisation(flops_per_image=2 * 10**9, devices=1, rate=1e11).speed(1000.0)
    monitor = monitor_of(tmp_path)
    monitor.begin(0)
    monitor.show(5, {**speed, "gradient_norm": 1.0, "lr": 1e-3, "data_wait": 0.0, "step_seconds": 1.0})
    assert "util disturbed" in capsys.readouterr().err


def test_a_run_s_trace_and_its_share_of_communication(launch):
    command = [*launch.command("training.steps=12", processes=2), "--profile", "2:3"]
    run = forked.run(command, cwd=ROOT, env=environment())
    assert run.returncode == 0, run.stderr
    traces = list((launch.run_folder() / "profile").iterdir())
    assert [trace.name for trace in traces] == ["steps_2_3.pt.trace.json"]
    names = {event.get("name") for event in json.loads(traces[0].read_text())["traceEvents"]}
    assert {"step 2", "step 3", "aten::convolution"} <= names
    assert not {"step 1", "step 4"} & names
    log = launch.log()
    assert "train/communication" not in log[8]
    assert all(0 < line["train/communication"] < 1 for line in log[9:])
    assert log[-1]["train/images_per_second"] == pytest.approx(2 * log[-1]["train/images_per_second_per_device"])
    assert 0 < log[-1]["train/utilisation"] < 1
    line = next(line for line in run.stderr.splitlines() if line.startswith("step 12/12"))
    assert "util " in line
    assert "comm " in line
