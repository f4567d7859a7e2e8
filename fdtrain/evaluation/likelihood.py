"""Bits/dim of a split by the bound and by the probability-flow ODE (docs/evaluation.md)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fdtrain.data.split import Images, Split
from fdtrain.diffusion.clocks import time_density
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.likelihood import crossed_importance_bound, importance_bound, ode_nll, ode_start
from fdtrain.diffusion.objective import Bound
from fdtrain.distributed import chunks
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.randomness import Purpose, stream

EXACT_TRACE_DIMS = 256
"""Up to this many dimensions the ODE's divergence is taken exactly, one backward pass per dimension."""


TOLERANCE = 7e-4
"""Of the ODE's solver, where none is named: the coarsest whose error is below 0.002 bits/dim (docs/evaluation.md)."""


def finest_tolerance(dtype: torch.dtype) -> float:
    """Of the ODE's solver. Finer than rounding, its steps shrink until it makes no way; in float32 3e-5 still does."""
    return 256 * torch.finfo(dtype).eps


def check_same_images(spec: ModelSpec, split: Split) -> None:
    """Raise UserError unless the split holds what the model models."""
    description = split.description
    expected, actual = (spec.shape, spec.levels), (description.shape, description.levels)
    if expected != actual:
        raise UserError(
            f"the model is of images (C, H, W) = {expected[0]} with {expected[1]} levels, "
            f"data set '{description.name}' has {actual[0]} with {actual[1]}. "
            f"Evaluate on the data set '{spec.dataset}'."
        )


def density_name(interval: Interval) -> str:
    """Where the bound's times are drawn for a model: any density gives the same mean, this one with a small error.

    On the closed interval as the scale of the data suggests. A truncated bound's integrand is about
    ``dims / t`` next to the data, and large next to 1 where a field is singular there.
    """
    if interval.t_min == 0:
        return "asinh"
    return "log_snr" if interval.t_max < 1 else "log_time"


def also_closed(model: Model) -> bool:
    """Whether a model of a truncated interval has a bound on the closed one too, on dequantised images."""
    bound, finite = model.spec.bound, model.predictor.finite
    return bound.interval != CLOSED and not bound.discrete and finite(0.0) and finite(1.0)


class Likelihood:
    """Bits/dim of images under a model.

    Every draw belongs to an image: its stream is keyed by (seed, image), so a value does not depend on ``batch``, up to
    rounding, or on how the images are shared among processes.

    Args:
        batch: evaluations that are computed together.
        bound: None: the model's own.
    """

    def __init__(
        self,
        model: Model,
        split: Images,
        seed: int = 0,
        batch: int = 256,
        dtype: torch.dtype = torch.float32,
        bound: Bound | None = None,
    ):
        self.model, self.split, self.spec = model, split, model.spec
        self.seed, self.batch, self.dtype = seed, batch, dtype
        self.bound = bound or model.spec.bound
        interval = self.bound.interval
        self.density = time_density(density_name(interval), model.spec.scale, interval)

    def elbo(self, images: range, draws: int) -> Tensor:
        """Negative ELBO of each image in bits/dim, ``(len(images), draws)``, float64, on the CPU.

        Each image has ``draws`` draws of dequantisation, time and noise, the times stratified over them, in the order
        of their strata.

        Raises UserError: the model's output is not finite.
        """
        return self.bound.bits_per_dim(self._drawn(images, self.bound.nelbo, draws), self.spec.dims)

    def elbo_importance(self, images: range, draws: int, dequantisations: int) -> Tensor:
        """The importance-weighted bound over dequantisations, by crossed halves, and the plain one of the same draws.

        Bits/dim, ``(len(images), 2)``: the draws' noise is mostly common to both, so their difference is known better.
        Each of an image's dequantisations gets the same ``draws`` (an even number) of time and noise, of which one
        stratified half chooses the weights and another estimates: :func:`crossed_importance_bound`.

        Raises UserError: the model's output is not finite.
        """
        spec, half, parts = self.spec, draws // 2, []
        for chunk in chunks(images, max(1, self.batch // draws)):
            us, noise = [], []
            for image in chunk:
                own = stream(self.seed, Purpose.EVALUATE, image, 0)
                us.append(((np.arange(half) + own.random((2, half))) / half).reshape(draws))
                noise.append(own.standard_normal((2, half, *spec.shape), dtype=np.float32).reshape(draws, *spec.shape))
            u, eps = _stack(us, torch.float64), _stack(noise, self.dtype)
            nats = []
            for k in range(dequantisations):
                uniform = self._uniform(chunk, k + 1)[:, None].expand_as(eps)
                nats.append(self._estimates(chunk, self.bound.nelbo, u, uniform, eps))
            halves = torch.stack(nats, 2)
            weighted = crossed_importance_bound(*halves.chunk(2, dim=1))
            parts.append(self.bound.bits_per_dim(torch.stack([weighted, halves.mean((1, 2))], 1), spec.dims))
        return torch.cat(parts)

    def correction_by_stratum(self, images: range, strata: int) -> Tensor:
        """The bound's integral, one estimate per image and stratum of the time quantile: bits/dim ``(images, strata)``.

        Its mean is the bound less the part that no model changes, such as the standard normal's.
        """
        return self._drawn(images, self.bound.correction, strata) / (self.spec.dims * math.log(2))

    def ode(
        self, images: range, tolerance: float = TOLERANCE, dequantisations: int = 1, exact: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``-log p`` by the ODE in nats, ``(len(images), dequantisations, probes)``, and the NFE, ``(len(images),)``.

        The divergence is exact (``probes`` is 1), or Hutchinson's estimate: by one probe for one dequantisation, by
        two, the same for all of an image's, for several. :func:`ode_bits` makes bits/dim of it.

        Raises UserError: the model's output is not finite.
        """
        spec, count = self.spec, probes(exact, dequantisations)
        device, values, evaluations = next(self.model.parameters()).device, [], []
        for chunk in chunks(images, self.batch):
            levels, label = self.split.batch(chunk)
            drawn = (
                None if exact else _stack([_probes(spec, count, self.seed, i) for i in chunk], self.dtype).to(device)
            )
            own = label.to(device) if spec.classes else None
            nats, nfe = [], torch.zeros(len(chunk), dtype=torch.float64)
            for k in range(dequantisations):
                x, entropy = ode_start(self.bound, levels, self._uniform(chunk, k))
                try:
                    found = ode_nll(self.model, x.to(device), tolerance, drawn, own, self.bound.interval, spec.scale)
                except FloatingPointError as error:
                    raise UserError(
                        f"images {chunk.start} to {chunk.stop - 1}: {error}: its weights are broken, "
                        "or the precision too low; try --float64."
                    ) from error
                nats.append(_finite(found.nll.double().cpu() - spec.dims * entropy, chunk))
                nfe += found.nfe.cpu()
            values.append(torch.stack(nats, 1))
            evaluations.append(nfe)
        return torch.cat(values), torch.cat(evaluations)

    def _drawn(self, images: range, measure: Callable[..., Tensor], draws: int) -> Tensor:
        """A ``measure`` of the bound in nats, ``(images, draws)``, of each image's own draws."""
        parts = [torch.empty(0, draws, dtype=torch.float64)]
        for chunk in chunks(images, max(1, self.batch // draws)):
            parts.append(self._estimates(chunk, measure, *self._draws_of(chunk, draws)))
        return torch.cat(parts)

    def _estimates(
        self, images: range, measure: Callable[..., Tensor], u: Tensor, uniform: Tensor, eps: Tensor
    ) -> Tensor:
        """A ``measure`` of the bound in nats, ``(images, draws)``, at time quantiles ``u``."""
        (levels, label), draws = self.split.batch(images), u.shape[1]
        device = next(self.model.parameters()).device
        t = self.density.quantile(u.flatten())
        x0, eps = self.bound.images(levels[:, None], uniform).flatten(0, 1), eps.flatten(0, 1)
        label = label.repeat_interleave(draws)
        nats = []
        for i in range(0, len(t), self.batch):
            part = slice(i, i + self.batch)
            field = self.model.field(label[part].to(device) if self.spec.classes else None)
            with torch.no_grad():
                parts = (x0[part], eps[part], t[part], self.density.pdf(t[part]))
                nats.append(measure(field, *(x.to(device) for x in parts)).double().cpu())
        return _finite(torch.cat(nats).view(-1, draws), images)

    def _draws_of(self, images: range, draws: int) -> tuple[Tensor, ...]:
        """:func:`_draws` of several images, ``(images, draws, ...)``, in the order of their times."""
        drawn = zip(*(_draws(self.spec, draws, self.seed, image) for image in images))
        u, uniform, eps = (_stack(parts, kind) for parts, kind in zip(drawn, (torch.float64, self.dtype, self.dtype)))
        order = u.argsort(1)
        return tuple(torch.stack([row[o] for row, o in zip(x, order)]) for x in (u, uniform, eps))

    def _uniform(self, images: range, number: int) -> Tensor:
        """The dequantisations of images with the given number, ``(images, C, H, W)``."""
        streams = (stream(self.seed, Purpose.EVALUATE, image, number) for image in images)
        return _stack([own.random(self.spec.shape, dtype=np.float32) for own in streams], self.dtype)


def _draws(spec: ModelSpec, draws: int, seed: int, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time quantiles ``(draws,)``, uniform and normal noise ``(draws, C, H, W)`` of one image."""
    own = stream(seed, Purpose.EVALUATE, image)
    u = (own.permutation(draws) + own.random(draws)) / draws
    shape = (draws, *spec.shape)
    return u, own.random(shape, dtype=np.float32), own.standard_normal(shape, dtype=np.float32)


def probes(exact: bool, dequantisations: int) -> int:
    """Estimates of the divergence that the ODE makes: two where one must choose weights and one estimate."""
    return 1 if exact or dequantisations == 1 else 2


def ode_bits(nats: Tensor, spec: ModelSpec) -> Tensor:
    """Bits/dim of each image, ``(images, 1)``, from the ODE: the importance-weighted bound of several."""
    if nats.shape[1] == 1:
        bound = nats[:, 0, 0]
    elif nats.shape[2] == 1:
        bound = importance_bound(nats[..., 0])
    else:
        bound = crossed_importance_bound(nats[:, None, :, 0], nats[:, None, :, 1])
    return spec.bound.bits_per_dim(bound[:, None], spec.dims)


def _probes(spec: ModelSpec, count: int, seed: int, image: int) -> np.ndarray:
    own = stream(seed, Purpose.EVALUATE, image)
    own.random(spec.shape, dtype=np.float32)  # The first dequantisation comes before.
    return (2 * own.integers(0, 2, (count, *spec.shape)) - 1).astype(np.float32)


def _finite(nats: Tensor, images: range) -> Tensor:
    broken = ~torch.isfinite(nats.flatten(1)).all(1)
    if broken.any():
        image = images[int(broken.nonzero()[0])]
        raise UserError(f"the model's output is not finite at image {image}: its weights are broken.")
    return nats


def _stack(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.stack(parts)).to(dtype)
