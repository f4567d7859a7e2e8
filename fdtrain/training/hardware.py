"""What a device can do: the precisions that it has, and the rate of its matrix products, measured."""

import ctypes
import platform
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path

import torch

from fdtrain.config import TrainingConfig
from fdtrain.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = (8, 0)
"""Compute capability that brought bf16 and TF32."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h: freed bytes at the heap's end from which on they are given up, and the size of a block that gets
a mapping of its own, 32 MiB at most."""

SECONDS = 0.2
"""That a measurement of :func:`matrix_rate` takes, about."""
SMALLEST, LARGEST, LONG_ENOUGH = 128, 8192, 0.01
"""Sides of the matrices, and seconds of one product from which on the side is not doubled."""


def name(device: torch.device) -> str:
    """What its maker calls it, as far as the system says."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return models[0] if models else platform.processor() or "cpu"


def check_precision(training: TrainingConfig, device: torch.device) -> None:
    """Raises UserError when the device lacks the precision or the TF32 that is asked for."""
    on_gpu = device.type == "cuda"
    modern = on_gpu and torch.cuda.get_device_capability(device) >= AMPERE
    brought = f"which compute capability 8.0 brought to GPUs: {name(device)} is none of these"
    if training.tf32 and not modern:
        raise UserError(f"training.tf32: no TF32 here, {brought}. Set training.tf32 to false.")
    if training.precision == "bf16" and on_gpu and not modern:
        raise UserError(f"training.precision: no bf16 here, {brought}. Set training.precision to fp16 or fp32.")


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """Of the images that the network gets while it trains: where a CPU's convolutions compute in half precision, their
    channels come last, or every one of them would turn its images round and back (docs/lab/performance.md). On a GPU
    torch.compile chooses."""
    half_on_cpu = device.type == "cpu" and precision != "fp32"
    return torch.channels_last if half_on_cpu else torch.contiguous_format


def keep_freed_memory() -> None:
    """Have the C library keep what it is given back: the next step needs as much again, and to map it anew, page by
    page, takes a tenth of a CPU's step. Nothing happens where the library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def set_tf32(on: bool) -> None:
    """Whether float32 products and convolutions on a GPU may round their inputs to ten bits; torch's own defaults
    differ between the two."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, for what is reported of a model."""
    on = torch.backends.cuda.matmul.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(bool(on))


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measured FLOP/s of square matrix products at ``precision`` (fp32: at TF32 where that is on), the best of some.

    This is what :class:`fdtrain.training.metrics.Utilisation` calls the whole of a device: what its matrix unit does
    with nothing in the way, not what its data sheet says. Of a CPU one thread is measured by its own clock, and counts
    as often as there are threads: several would wait for one another, and so measure what other programs leave of it.
    """
    if device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return threads * _best_rate(device, precision)
        finally:
            torch.set_num_threads(threads)
    torch.cuda.synchronize(device)
    rate = _best_rate(device, precision)
    # The peak that is reported is training's.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return rate


def _best_rate(device: torch.device, precision: str) -> float:
    end, side = time.perf_counter() + SECONDS, SMALLEST
    while (seconds := min(islice(_products(device, precision, side), 3))) < LONG_ENOUGH and side < LARGEST:
        side *= 2
    within = takewhile(lambda _: time.perf_counter() < end, _products(device, precision, side))
    return 2 * side**3 / min([seconds, *within])


def _products(device: torch.device, precision: str, side: int) -> Iterator[float]:
    """Takes one after another, each in so many seconds. The matrices are random: those of one number take a GPU less
    power, and so let it have a higher clock than training does."""
    own, clock = torch.Generator(device), time.perf_counter if device.type == "cuda" else time.thread_time
    a, b = (torch.randn(side, side, device=device, generator=own).to(DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    while True:
        begin = clock()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield clock() - begin


def lacks_units(device: torch.device, precision: str, rate: float) -> str | None:
    """A warning for a CPU that computes at half precision, but more slowly than in float32."""
    if device.type != "cpu" or precision == "fp32":
        return None
    full = matrix_rate(device, "fp32")
    if rate >= full:
        return None
    return (
        f"this CPU multiplies matrices {full / rate:.0f} times slower in {precision} than in float32 (it has no unit "
        f"for it): training.precision: fp32 is faster here, and more exact"
    )


def memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the accelerator, or of this process on the CPU. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
