"""fdtrain/main.py with faults: ``injected.py '{"loss": {"steps": [2], "rank": 1}}' --config ...``.

``loss``: not finite in these steps on this rank; ``gradient``: the same, of a finite loss; ``until_return``: only
before the first return to a checkpoint; ``disk``: writing the part of these steps' checkpoints fails on this rank,
only so many ``times`` if that is given; ``long``: a minute in one call outside of Python;
``lock``: its owner looks at it so often (``beat`` seconds); ``devices``: the name of each rank's.
``kill``: ``{"moment": a name, "step": 7}``: the whole job, launcher included, at the first such moment from this step
on; the names stand below.
"""

import ctypes
import errno
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from fdtrain import distributed, lock
from fdtrain.checkpoint import writer
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.main import main
from fdtrain.training import hardware
from fdtrain.training.trainer import Trainer

# The launcher puts its own argument in front.
faults = json.loads(sys.argv.pop(next(i for i, a in enumerate(sys.argv) if a.startswith("{"))))


def hits(fault: str, step: int) -> bool:
    here = faults.get(fault, {})
    return step in here.get("steps", []) and here.get("rank", 0) == distributed.rank()


def kill(moment: str, step: int) -> None:
    wanted = faults.get("kill")
    if wanted and wanted["moment"] == moment and step >= wanted["step"]:
        os.killpg(0, signal.SIGKILL)


true_step, true_loss, true_write = Trainer._step, Trainer._loss, writer.write_part
true_rename, true_elbo = Path.rename, Likelihood.elbo
now = 0


def wait_in_c(seconds):
    """Whatever signals come: a lock that is held already is waited for, which none of them interrupts."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_timedlock(mutex, (ctypes.c_long * 2)(int(time.time() + seconds), 0))


def step_with_faults(self, step, *arguments):
    global now
    now = step
    true_step(self, step, *arguments)


def loss_with_faults(self, *arguments):
    kill("in a step", now)
    if hits("long", now):
        print("a long call begins", file=sys.stderr, flush=True)
        wait_in_c(60)
    loss = true_loss(self, *arguments)
    if faults.get("until_return") and self.state.rollbacks:
        return loss
    if hits("loss", now):
        return loss * float("nan")
    if hits("gradient", now):
        weight = next(self.engine.model.parameters())
        return loss + (weight.sum() * 0).sqrt() * 0
    return loss


def write_with_faults(path, fragments):
    if hits("disk", int(path.parent.name.removeprefix(".step_"))) and faults["disk"].get("times", 1) > 0:
        if "times" in faults["disk"]:
            faults["disk"]["times"] -= 1
        raise OSError(errno.ENOSPC, "No space left on device")
    if faults.get("kill", {}).get("moment") == "in a part":
        true_write(path, fragments[: len(fragments) // 2])
        kill("in a part", now)
    return true_write(path, fragments)


def rename_with_faults(self, target):
    commits = self.name.startswith(".step_")
    if commits:
        kill("before the rename", now)
    moved = true_rename(self, target)
    if commits:
        kill("after the rename", now)
    return moved


def elbo_with_faults(*arguments, **options):
    kill("in evaluation", now)
    return true_elbo(*arguments, **options)


if "devices" in faults:
    hardware.name = lambda device: faults["devices"][distributed.rank()]
Trainer._step, Trainer._loss, writer.write_part = step_with_faults, loss_with_faults, write_with_faults
lock.held = partial(lock.held, **faults.get("lock", {}))
Path.rename, Likelihood.elbo = rename_with_faults, elbo_with_faults
sys.exit(main())
