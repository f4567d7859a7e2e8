"""Averages of the weights, in float32 from float32 weights: one exponential, any number by a power of time
(docs/training.md)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ema_pytorch import EMA
from torch import nn

from fdtrain.checkpoint.fragments import AVERAGE, Fragment, FragmentReader, power_average
from fdtrain.checkpoint.profiles import decay, exponent_of
from fdtrain.distributed import all_reduce_sum
from fdtrain.networks.model import Model


class _Parts(nn.Module):
    """This rank's fragments of the weights, live, as a module for ema-pytorch."""

    def __init__(self, fragments: list[Fragment]):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(f.tensor, requires_grad=False) for f in fragments)


class _PartsEMA(EMA):
    """Exponential, or of a profile of checkpoint/profiles.py.

    ema-pytorch's own of these are not used: ``KarrasEMA`` counts one step too many, so that its profile is not the one
    of its length; ``PostHocEMA`` stores float16, whose rounding the synthesis multiplies by coefficients of several
    units.
    """

    exponent: float | None = None

    def get_current_decay(self) -> float:
        return super().get_current_decay() if self.exponent is None else decay(self.exponent, int(self.step))

    @torch.no_grad()
    def update_moving_average(self, ma_model: nn.Module, current_model: nn.Module, current_decay: None = None) -> None:
        # The base class looks at every name first, which takes more time than a small network's average.
        averages, weights = (list(model.parameters()) for model in (ma_model, current_model))
        torch._foreach_lerp_(averages, weights, 1.0 - self.get_current_decay())  # pyright: ignore


class Average:
    """An average of a model's weights, each rank keeping that of its own fragments.

    It is elementwise, so it is the same however the weights are shared.

    Args:
        weights: live fragments of the float32 weights that the optimiser steps, as ``Engine.weights`` gives.
        length: the relative length of a power-function average; None: exponential.
        beta, warmup_power: of an exponential one, whose decay of step n is ``min(beta, 1 - (1 + n / 10)^-power)``: at
            power 1 about the warm-up of Song et al. 2021.
    """

    def __init__(
        self, weights: list[Fragment], length: float | None = None, beta: float = 0.0, warmup_power: float = 1.0
    ):
        self.weights, self.kind = weights, AVERAGE if length is None else power_average(length)
        self.ema = _PartsEMA(
            _Parts(weights),
            beta=beta,
            power=warmup_power,
            inv_gamma=10.0,
            update_after_step=0,
            update_every=1,
            include_online_model=False,
        )
        if length is not None:
            self.ema.exponent = exponent_of(length)  # pyright: ignore[reportArgumentType]

    def update(self) -> None:
        """Once per optimiser step."""
        self.ema.update()

    @property
    def fragments(self) -> list[Fragment]:
        """This rank's, live."""
        averaged = self.ema.ema_model
        assert isinstance(averaged, _Parts)
        pairs = zip(self.weights, averaged.parts, strict=True)
        return [Fragment(self.kind, w.parameter, w.start, part.data) for w, part in pairs]

    def load(self, parts: FragmentReader, steps: int) -> None:
        """Load the average after ``steps`` updates, whatever number of ranks saved it."""
        for fragment in self.fragments:
            fragment.tensor.copy_(parts.read(self.kind, fragment.parameter, fragment.start, len(fragment.tensor)))
        self.ema.get_buffer("step").fill_(steps)
        self.ema.get_buffer("initted").fill_(True)

    @contextmanager
    def in_model(self, model: Model, device: torch.device) -> Iterator[None]:
        """``model``, which is on the CPU, with the averages of all ranks, on ``device`` as long as the context lasts.

        Every rank must enter it.
        """
        model.to(device)
        try:
            sizes = {name: p.numel() for name, p in model.named_parameters()}
            flat = torch.zeros(sum(sizes.values()), device=device)
            places = dict(zip(sizes, flat.split(list(sizes.values())), strict=True))
            for fragment in self.fragments:
                places[fragment.parameter][fragment.start :][: len(fragment.tensor)] = fragment.tensor
            all_reduce_sum(flat)
            for name, parameter in model.named_parameters():
                parameter.copy_(places[name].view_as(parameter))
            yield
        finally:
            model.to("cpu")
