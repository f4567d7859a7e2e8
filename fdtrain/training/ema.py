"""Averages of the weights, in float32 from float32 weights: one exponential, any number by a power of time
(docs/training.md)."""

from contextlib import contextmanager

import torch
from ema_pytorch import EMA
from torch import Tensor, nn

from fdtrain.checkpoint.fragments import AVERAGE, Fragment, FragmentReader, power_average
from fdtrain.checkpoint.profiles import decay, exponent_of
from fdtrain.distributed import all_reduce_sum
from fdtrain.networks.model import Model


class Shard(nn.Module):
    """This rank's fragments of the weights, live, as a module for ema-pytorch."""

    def __init__(self, fragments: list[Fragment]):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(f.tensor, requires_grad=False) for f in fragments)


class Average:
    """The average of a model's weights, each rank keeping that of its own fragments.

    The decay of step n is ``min(decay, 1 - (1 + n / 10)^-warmup_power)``: at power 1 about the warm-up of
    Song et al. 2021. A fragment's average is elementwise, so it is the same however the weights are shared.

    Args:
        weights: live fragments of the float32 weights that the optimiser steps, as ``Engine.weights`` gives.
        model: holds the whole average while :meth:`gathered`; kept on the CPU.
    """

    def __init__(self, weights: list[Fragment], model: Model, decay: float, warmup_power: float):
        self.weights = weights
        self.model = model.eval().requires_grad_(False)
        self.ema = EMA(
            Shard(weights),
            beta=decay,
            power=warmup_power,
            inv_gamma=10.0,
            update_after_step=0,
            update_every=1,
            include_online_model=False,
            use_foreach=True,
        )

    def update(self) -> None:
        """Once per optimiser step."""
        self.ema.update()

    @property
    def fragments(self) -> list[Fragment]:
        """This rank's, live."""
        shard = self.ema.ema_model
        assert isinstance(shard, Shard)
        return [
            Fragment(AVERAGE, w.parameter, w.start, part.data)
            for w, part in zip(self.weights, shard.parts, strict=True)
        ]

    def load(self, parts: FragmentReader, steps: int) -> None:
        """Load the average after ``steps`` updates."""
        for fragment in self.fragments:
            fragment.tensor.copy_(parts.read(AVERAGE, fragment.parameter, fragment.start, len(fragment.tensor)))
        self.ema.get_buffer("step").fill_(steps)
        self.ema.get_buffer("initted").fill_(True)

    @contextmanager
    def gathered(self, device: torch.device):
        """The model with the averaged weights of all ranks, on ``device``, for as long as the context lasts.

        Every rank must enter it.
        """
        self.model.to(device)
        try:
            self._gather(device)
            yield self.model
        finally:
            self.model.to("cpu")

    def _gather(self, device: torch.device) -> None:
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name], end = end, end + size
        flat = torch.zeros(end, device=device)
        for fragment in self.fragments:
            first = offsets[fragment.parameter] + fragment.start
            flat[first : first + len(fragment.tensor)] = fragment.tensor
        all_reduce_sum(flat)
        for name, parameter in self.model.named_parameters():
            parameter.copy_(_part(flat, offsets[name], parameter))


def _part(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    return flat[offset : offset + like.numel()].view_as(like)


class PowerAverages:
    """Power-function averages of the given lengths (profiles.py), each rank keeping those of its own fragments.

    ema-pytorch's are not used. Its ``KarrasEMA`` is elementwise, as this is, but counts one step too many, so that its
    profile is not the one of its length, and ignores that it was told to skip steps; its ``PostHocEMA`` stores float16,
    whose rounding the synthesis multiplies by coefficients of several units, in pickles, and takes every such file in
    the folder for one of the run's.

    Args:
        weights: live, as of :class:`Average`.
    """

    def __init__(self, weights: list[Fragment], lengths: tuple[float, ...]):
        self.weights = weights
        self.averages = {length: [w.tensor.clone() for w in weights] for length in lengths}

    def update(self, step: int) -> None:
        """After optimiser step ``step``, from 1."""
        for length, tensors in self.averages.items():
            if tensors:
                weights, share = [w.tensor for w in self.weights], 1 - decay(exponent_of(length), step)
                torch._foreach_lerp_(tensors, weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @property
    def fragments(self) -> list[Fragment]:
        """This rank's, live."""
        return [
            Fragment(power_average(length), w.parameter, w.start, tensor)
            for length, tensors in self.averages.items()
            for w, tensor in zip(self.weights, tensors, strict=True)
        ]

    def load(self, parts: FragmentReader) -> None:
        """Load what any number of ranks saved."""
        for fragment in self.fragments:
            fragment.tensor.copy_(parts.read(fragment.kind, fragment.parameter, fragment.start, len(fragment.tensor)))
