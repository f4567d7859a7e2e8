"""fdtrain/main.py that prints where, within a step, the host asks for a value of a tensor or waits for the device."""

import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

import deepspeed
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fdtrain.main import main
from fdtrain.training.trainer import Trainer

true_step, places, within = Trainer._step, Counter(), []
VALUE = torch.ops.aten._local_scalar_dense.default


def place(frame: FrameType | None) -> str:
    """The innermost function outside of torch."""
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    assert frame is not None
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"


class Counted(TorchDispatchMode):
    """Counts values that become numbers of Python: by ``.item()``, ``float()``, ``bool()``, ``tolist()``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is VALUE:
            places[place(sys._getframe(1))] += 1
        return func(*args, **(kwargs or {}))


def counted(function):
    def call(*arguments, **options):
        if within and threading.current_thread() is threading.main_thread():
            places[place(sys._getframe(1))] += 1
        return function(*arguments, **options)

    return call


def step_counted(self, step, *arguments):
    """From the third step on: in the first ones ZeRO 3 learns the order of the modules, and compares it among ranks."""
    if step < 2:
        return true_step(self, step, *arguments)
    within.append(step)
    if self.engine.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    with Counted():
        true_step(self, step, *arguments)
    if self.engine.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    within.clear()


Trainer._step = step_counted
torch.Tensor.cpu = counted(torch.Tensor.cpu)
torch.cuda.synchronize = counted(torch.cuda.synchronize)
accelerator = deepspeed.accelerator.get_accelerator()
accelerator.synchronize = counted(accelerator.synchronize)
code = main()
for name in places:
    print("waits:", name)
sys.exit(code)
