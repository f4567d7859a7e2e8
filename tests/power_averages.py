"""Runs with power-function averages that nobody has trained: their weights walk at random."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from checkpoints import shared, write_checkpoint
from models import DIGITS
from torch import Tensor

from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import AVERAGE, WEIGHT, Fragment
from fdtrain.checkpoint.profiles import decay, exponent_of, fit
from fdtrain.networks.model import Model
from fdtrain.training.ema import Average

LENGTHS = (0.05, 0.1)


def direct_average(weights: list[Tensor], length: float) -> Tensor:
    """The power-function average of the weights after each step, in float64: what synthesis approximates."""
    average = torch.zeros_like(weights[0], dtype=torch.float64)
    for step, each in enumerate(weights, 1):
        average.lerp_(each.double(), 1 - decay(exponent_of(length), step))
    return average


def error_bound(weights: list[Tensor], snapshots: list[int], length: float) -> float:
    """Of the L2 norm of a synthesised tensor's error at the last step (profiles.Fit), with room for float32."""
    last, g = len(weights), exponent_of(length)
    steps, lengths = [s for s in snapshots for _ in LENGTHS], [n for _ in snapshots for n in LENGTHS]
    found = fit(steps, lengths, last, length)
    norm = ((g + 1) ** 2 / (2 * g + 1) / last) ** 0.5
    spread = sum(float((each.double() - weights[-1]).square().sum()) for each in weights) ** 0.5
    rounding = 1e-6 * abs(found.coefficients).sum() * float(weights[-1].norm())
    return found.error * norm * spread + rounding


@dataclass
class Walk:
    """A run folder of ``steps`` steps with a checkpoint after the last, and the weights of each step by name."""

    folder: Path
    weights: dict[str, list[Tensor]]
    snapshots: list[int]


def walk(run: Path, steps: int = 32, every: int = 4, parts: int = 1, lengths: tuple[float, ...] = LENGTHS) -> Walk:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: p.numel() for name, p in Model(DIGITS).named_parameters()}
    weights = [Fragment(WEIGHT, name, 0, torch.zeros(count)) for name, count in shapes.items()]
    averages = [Average(weights, length) for length in lengths]
    history, snapshots = {name: [] for name in shapes}, []
    for step in range(1, steps + 1):
        for w in weights:
            w.tensor.add_(0.02 * torch.randn(len(w.tensor), generator=generator))
            history[w.parameter].append(w.tensor.clone())
        for average in averages:
            average.update()
        fragments = [fragment for average in averages for fragment in average.fragments]
        if step % every == 0 and lengths:
            write_checkpoint(run, step, shared(fragments, parts), DIGITS, store.AVERAGES)
            snapshots.append(step)
    own = [replace(w, kind=AVERAGE) for w in weights]
    write_checkpoint(run, steps, shared(weights + own + fragments, parts), DIGITS)
    (run / "config.yaml").write_text("name: walk\n")
    return Walk(run, history, sorted({*snapshots, steps}))
