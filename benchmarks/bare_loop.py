"""A training step without the trainer: forward, backward and fused AdamW of one network on one fixed batch.

What a network takes on this machine by itself, against which benchmarks measure the trainer.
"""

from collections.abc import Iterator

import torch

from fdtrain.networks.model import Model, ModelSpec
from fdtrain.training.hardware import DTYPES, memory_format


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
