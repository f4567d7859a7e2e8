"""fdtrain.train: the numbers of the command, in a process that goes on as if nothing had been."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT, environment, fork

import fdtrain
from fdtrain.resilience import signals
from fdtrain.resilience.signals import interruptible

STATE = """
import gc, json, multiprocessing, os, signal, sys, threading, time
import torch
import fdtrain
from fdtrain.networks.model import Model

config, output = sys.argv[1:]

def state():
    # What a run must not leave behind.
    gc.collect()
    models = sum(isinstance(found, Model) for found in gc.get_objects())
    variables = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)]
    threads = [thread.name for thread in threading.enumerate() if thread.name != "tqdm_monitor"]
    group = torch.distributed.is_initialized()
    return models, variables, handlers, threads, multiprocessing.active_children(), group

def refused(*arguments, **options):
    try:
        fdtrain.train(*arguments, **options)
    except fdtrain.UserError as error:
        return str(error)

before = state()
"""
TWICE = """
losses = fdtrain.train(config).metrics["train/bits_per_dim"]
assert state() == before
again = refused(config)
other = {"name": "other", "training": {"steps": 4}, "network.channels": 16}
run = fdtrain.train(config, other)
thread = threading.Thread(target=lambda: fdtrain.train(config, other, {"training.steps": 5}, resume=True))
thread.start()
thread.join()
assert state() == before
images = run.model.sample(5, steps=2, progress=True)
assert tuple(images.shape) == (5, 1, 8, 8) and run.model.origin.step == 5
found = {"losses": losses.tolist(), "again": again, "other": run.metrics["train/bits_per_dim"].shape}
json.dump(found, open(output, "w"))
"""
INTERRUPTED = """
log = os.path.join(os.path.dirname(output), "runs", "small", "metrics.jsonl")

def interrupt():
    while not os.path.exists(log) or not open(log).read():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

steps = {"training.steps": 100}
threading.Thread(target=interrupt).start()
try:
    fdtrain.train(config, steps)
except KeyboardInterrupt as interrupted:
    # As a notebook does it.
    sys.last_exc = interrupted
said = str(sys.last_exc)
assert state() == before
losses = fdtrain.train(config, steps, resume=True).metrics["train/bits_per_dim"]
wrong = refused(config, steps, {"name": "wrong", "data.path": "/nowhere"})
json.dump({"said": said, "losses": losses.tolist(), "wrong": wrong}, open(output, "w"))
"""


def in_process(launch, program: str) -> dict:
    """What a program in a process of its own has found."""
    script, output = launch.folder / "program.py", launch.folder / "found.json"
    script.write_text(STATE + program)
    done = fork([str(script), str(launch.config), str(output)], launch.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text())


def test_two_runs_in_one_process_have_the_numbers_of_the_command(launch):
    launch("name=command", processes=0)
    found = in_process(launch, TWICE)
    assert dict(zip(*found["losses"])) == launch.losses("command")
    assert found["again"].startswith(f"{launch.run_folder()} already holds a run (step_00000006).")
    assert "resume=True" in found["again"]
    assert found["other"] == [2, 5]


def test_an_interrupted_run_is_saved_and_goes_on(launch):
    launch("name=command", "training.steps=100", processes=0)
    found = in_process(launch, INTERRUPTED)
    assert found["said"].startswith("stopped as asked after step ")
    assert found["said"].endswith(", in Python resume=True.")
    assert dict(zip(*found["losses"])) == launch.losses("command")
    assert "no folder /nowhere" in found["wrong"]


def test_a_second_interrupt_is_python_s():
    asked = []
    with interruptible(lambda: asked.append("stop"), "what it does"):
        signal.raise_signal(signal.SIGINT)
        assert asked == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_an_interrupt_while_a_line_is_written(monkeypatch):
    """The stream may not be entered again by the thread that is within it."""
    inside, lines = threading.Lock(), []

    def write(message, *values):
        with inside:
            lines.append(message % values)

    monkeypatch.setattr(signals.logger, "warning", write)
    with interruptible(lambda: lines.append("stop"), "what it does"):
        with inside:
            signal.raise_signal(signal.SIGINT)
        for _ in range(500):
            if len(lines) < 2:
                time.sleep(0.01)
    assert lines == ["stop", "SIGINT: what it does"]


def test_mistakes():
    with pytest.raises(fdtrain.UserError, match="did you mean 'digits'"):
        fdtrain.train("digitz")
    with pytest.raises(fdtrain.UserError, match=r"training\.steps: .* not 'many' .in the mapping.."):
        fdtrain.train("digits", {"training": {"steps": "many"}})


def test_a_process_that_is_one_of_several_or_has_a_group_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(fdtrain.UserError, match="one process of 2"):
        fdtrain.train("digits")
    monkeypatch.delenv("WORLD_SIZE")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(fdtrain.UserError, match="in use in this process"):
            fdtrain.train("digits")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("absent", "call"), [("deepspeed", "train({config!r})"), ("torch", "load('runs/x')")])
def test_a_package_that_is_not_installed_is_named(launch, absent, call):
    program = f"import sys; sys.modules[{absent!r}] = None; import fdtrain; fdtrain.{call}"
    done = subprocess.run(
        [sys.executable, "-c", program.format(config=str(launch.config))],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fdtrain.errors.UserError: ")
    assert f"has no {absent}." in last
