"""A training step without the trainer: forward, backward and fused AdamW of one network on one fixed batch.

What a network takes on this machine by itself: a first configuration is chosen by it, and benchmarks measure the
trainer against it.
"""

import time
from collections.abc import Iterator

import torch

from fdtrain.networks.model import Model, ModelSpec
from fdtrain.training.hardware import DTYPES, keep_freed_memory, memory_format

REPEATS, ENOUGH_SECONDS = 3, 1.0


def bare_loop(
    spec: ModelSpec,
    images: int,
    device: torch.device,
    precision: str,
    compiled: bool = False,
    checkpointing: bool = False,
    layout: torch.memory_format | None = None,
) -> Iterator[None]:
    """Make one step at each ``next``. ``layout`` of the images: by default the trainer's."""
    layout = layout or memory_format(device, precision)
    model = Model(spec, checkpointing).to(device)
    if compiled:
        model.network.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), fused=True)
    x0, eps = torch.rand(images, *spec.shape, device=device) * 2 - 1, torch.randn(images, *spec.shape, device=device)
    interval = spec.bound.interval
    t = torch.linspace(interval.t_min, interval.t_max, images, dtype=torch.float64, device=device)
    pdf = torch.ones_like(t)
    cast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    label = torch.zeros(images, dtype=torch.int64, device=device) if spec.classes else None

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with cast:
            return model(x.contiguous(memory_format=layout), t, label)

    while True:
        (spec.bound.nelbo(field, x0, eps, t, pdf).mean() / spec.dims).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def images_per_second(spec: ModelSpec, precision: str, images: int, checkpointing: bool, device: torch.device) -> float:
    """The best of some steps, or of one that takes long, after one that warms up."""
    if device.type == "cpu":
        keep_freed_memory()
    loop, seconds = bare_loop(spec, images, device, precision, checkpointing=checkpointing), []
    while len(seconds) < 2 or (len(seconds) <= REPEATS and sum(seconds) < ENOUGH_SECONDS):
        begin = time.perf_counter()
        next(loop)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return images / min(seconds[1:])
