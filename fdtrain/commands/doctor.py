"""What this machine and this installation can do, and what to do about each lack.

fdtrain doctor
fdtrain doctor --json          for a report of a fault
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import fdtrain
from fdtrain.errors import EXTRAS, missing

GIB = 2**30
FEW_DISK, FEW_SHM, FAR_CLOCK = 10, 1, 2.0
"""GiB, GiB, and seconds that are worth a word."""
BF16 = (8, 0)
"""Compute capability that brought it."""


class Finding(NamedTuple):
    """What there is, and what to do if that is not enough."""

    name: str
    found: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    found = findings()
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1))
        return
    for name, what, advice in found:
        print(f"{name:<10} {what}")
        if advice:
            print(f"{'':<10} -> {advice}")


def findings() -> list[Finding]:
    gpus, here = _gpus(), Path(fdtrain.__file__).parent
    return [
        Finding("fdtrain", f"{fdtrain.__version__} in {here}, Python {platform.python_version()}"),
        _package("torch"),
        _device(gpus),
        _package("deepspeed"),
        _compiler(gpus),
        _extras(),
        _disk(),
        _shared_memory(gpus),
        _threads(),
        _clock(),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", missing(name))


def _gpus() -> list[tuple[str, tuple[int, int]]]:
    """The name and compute capability of each GPU; none without a torch that can be imported."""
    try:
        import torch

        there = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        return [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in there]
    except (ImportError, OSError, RuntimeError):
        return []


def _device(gpus: list[tuple[str, tuple[int, int]]]) -> Finding:
    if gpus:
        kinds = [f"{gpus.count(gpu)} x {gpu[0]} ({'.'.join(map(str, gpu[1]))})" for gpu in dict.fromkeys(gpus)]
        old = min(capability for _, capability in gpus) < BF16
        advice = "no bf16 before compute capability 8.0: set training.precision to fp16 or fp32." if old else ""
        return Finding("GPUs", ", ".join(kinds), advice)
    if shutil.which("nvidia-smi"):
        other = "install a torch for CUDA (https://pytorch.org), or unset CUDA_VISIBLE_DEVICES."
        return Finding("GPUs", "none", f"nvidia-smi is here, but torch sees no GPU: {other}")
    return Finding("GPUs", "none", "training runs on the CPU, which suits images up to 32x32.")


def _compiler(gpus: list) -> Finding:
    found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    triton = "" if not gpus else ", triton" if find_spec("triton") else ", no triton"
    lacks = not found or triton == ", no triton"
    advice = "torch.compile needs g++, and triton on GPUs; training.compile: false does without." if lacks else ""
    return Finding("compiler", f"{found or 'none'}{triton}", advice)


def _extras() -> Finding:
    lacking = [extra for extra, modules in EXTRAS.items() if not all(map(find_spec, modules))]
    there = ", ".join(extra for extra in EXTRAS if extra not in lacking) or "none"
    install = f'for more: pip install "fdtrain[{",".join(lacking)}]", or make environment in a checkout.'
    return Finding("extras", there, install if lacking else "")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / GIB
    advice = "checkpoints may not fit: choose another 'output'." if free < FEW_DISK else ""
    return Finding("disk", f"{free:,.0f} GiB free in {Path.cwd()}", advice)


def _shared_memory(gpus: list) -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free / GIB
    except OSError:
        return Finding("/dev/shm", "none")
    little = free < FEW_SHM and len(gpus) > 1
    return Finding("/dev/shm", f"{free:.1f} GiB free", "NCCL needs more: docker run --shm-size 1g." if little else "")


def _threads() -> Finding:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    given = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ]
    advice = "other programs use the cores: OMP_NUM_THREADS=1 may be faster." if load > cores else ""
    return Finding("threads", f"{cores} of {os.cpu_count()} cores, load {load:.1f}, {' '.join(given)}", advice)


def _clock() -> Finding:
    try:
        with tempfile.TemporaryFile(dir=".") as file:
            ahead = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        return Finding("clock", "not compared", f"{Path.cwd()} cannot be written ({error.strerror}).")
    now, advice = time.strftime("%Y-%m-%d %H:%M %Z"), "set the clocks by NTP: files are dated by the file server's."
    there = f"{now}; that of this folder's file system {ahead:+.1f} s"
    return Finding("clock", there, advice if abs(ahead) > FAR_CLOCK else "")
