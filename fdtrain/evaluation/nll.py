"""Bits/dim of a split by the bound and by the probability-flow ODE (docs/evaluation.md).

Every draw belongs to an image: its stream is keyed by (seed, image), so a value does not depend on batch
sizes or on how the images are shared among processes.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import exact_trace, hutchinson_trace, ode_nll
from fdtrain.diffusion.objective import bits_per_dim, dequantise, nelbo
from fdtrain.diffusion.time_sampling import TimeDensity
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.randomness import Purpose, stream

EXACT_TRACE_DIMS = 256
"""Up to this many dimensions the ODE's divergence is taken exactly, one backward pass per dimension."""


def check_same_images(spec: ModelSpec, split: Split) -> None:
    """Raise UserError unless the split holds what the model models."""
    found = split.description
    ours, theirs = (spec.shape, spec.levels), (found.shape, found.levels)
    if ours != theirs:
        raise UserError(
            f"the model is of images (C, H, W) = {ours[0]} with {ours[1]} levels, "
            f"data set '{found.name}' has {theirs[0]} with {theirs[1]}. Evaluate on the data set '{spec.dataset}'."
        )


def elbo(
    model: Model,
    spec: ModelSpec,
    split: Split,
    images: range,
    density: TimeDensity,
    draws: int,
    seed: int = 0,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Negative ELBO of each image in bits/dim, ``(len(images), draws)``, float64, on the CPU.

    Each image has ``draws`` draws of dequantisation, time and noise, the times stratified over them.
    """
    values = []
    for chunk in _chunks(images, max(1, batch // draws)):
        levels, label = split.batch(chunk)
        u, uniform, eps = (_stack(parts, dtype) for parts in zip(*(_draws(spec, draws, seed, i) for i in chunk)))
        device = next(model.parameters()).device
        t = density.quantile(u.double().flatten())
        x0 = dequantise(levels[:, None], uniform, spec.levels).flatten(0, 1).to(device)
        label = label.repeat_interleave(draws).to(device) if spec.classes else None
        with torch.no_grad():
            nats = nelbo(model.field(label), x0, eps.flatten(0, 1).to(device), t.to(device), density.pdf(t).to(device))
        values.append(bits_per_dim(nats.double().cpu().view(len(chunk), draws), spec.dims, spec.levels))
        progress(len(chunk))
    return torch.cat(values)


def _draws(spec: ModelSpec, draws: int, seed: int, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time quantiles ``(draws,)``, uniform and normal noise ``(draws, C, H, W)`` of one image."""
    own = stream(seed, Purpose.EVALUATE, image)
    u = (own.permutation(draws) + own.random(draws)) / draws
    shape = (draws, *spec.shape)
    return u, own.random(shape, dtype=np.float32), own.standard_normal(shape, dtype=np.float32)


def ode(
    model: Model,
    spec: ModelSpec,
    split: Split,
    images: range,
    tolerance: float = 1e-5,
    seed: int = 0,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[Tensor, float]:
    """Bits/dim of each image by the ODE, one dequantisation each: ``(len(images), 1)``, and the mean NFE.

    A bound too, through uniform dequantisation, but with nothing truncated. The divergence is exact up to
    :data:`EXACT_TRACE_DIMS` dimensions, Hutchinson's estimate with one probe per image above.
    """
    values, evaluations = [], 0
    for chunk in _chunks(images, batch):
        levels, label = split.batch(chunk)
        uniform, probe = (_stack(parts, dtype) for parts in zip(*(_ode_draws(spec, seed, i) for i in chunk)))
        device = next(model.parameters()).device
        label = label.to(device) if spec.classes else None
        trace = exact_trace if spec.dims <= EXACT_TRACE_DIMS else hutchinson_trace(probe.to(device))
        x0 = dequantise(levels, uniform, spec.levels).to(device)
        result = ode_nll(model.field(label), x0, trace, tolerance)
        values.append(bits_per_dim(result.nll.double().cpu()[:, None], spec.dims, spec.levels))
        evaluations += result.nfe * len(chunk)
        progress(len(chunk))
    return torch.cat(values), evaluations / len(images)


def _ode_draws(spec: ModelSpec, seed: int, image: int) -> tuple[np.ndarray, np.ndarray]:
    own = stream(seed, Purpose.EVALUATE, image)
    return own.random(spec.shape, dtype=np.float32), 2.0 * own.integers(0, 2, spec.shape) - 1.0


def _stack(parts: tuple[np.ndarray, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.stack(parts)).to(dtype)


def _chunks(images: range, size: int) -> Iterator[range]:
    for i in range(0, len(images), size):
        yield images[i : i + size]
