"""A trained model in Python: sampling, likelihoods and the field itself. Needs no DeepSpeed (docs/api.md).

    model = fdtrain.load("runs/digits")
    images = model.sample(64, steps=10, seed=0)
    print(model.bits_per_dim(images).mean)

Images are levels, as data sets store them: uint8 ``(N, C, H, W)`` from 0 to ``model.spec.levels - 1``. Every method
gives the same values again for the same arguments, whatever ``batch`` is (up to rounding): image ``i`` draws from a
stream of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from fdtrain import distributed
from fdtrain.data.split import Batch
from fdtrain.diffusion.likelihood import Estimate, estimate, standard_errors
from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.solvers import DEFAULT
from fdtrain.diffusion.solvers.stepper import Stepper
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation import pictures
from fdtrain.evaluation.likelihood import EXACT_TRACE_DIMS, TOLERANCE, Likelihood, finest_tolerance, ode_bits
from fdtrain.evaluation.load import ModelOrigin, open_model
from fdtrain.evaluation.process import open_device
from fdtrain.evaluation.samples import Sampler, to_pixels
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.plugins import execute
from fdtrain.randomness import check_seed

Label = int | str | Sequence[int | str] | Tensor | None
"""Classes by number or name: one for all images, or one for each."""


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    ema_length: float | None = None,
    allow_code: Sequence[str | Path] = (),
) -> "TrainedModel":
    """Load the averaged weights of a run (its newest checkpoint), a checkpoint or an export.

    Args:
        path: its folder.
        device: as torch names it, or "auto": the GPU where there is one.
        ema_length: relative length of the average, of a run with ``ema.lengths``; None: the average of ``ema.decay``.
        allow_code: files that are executed, for a network, predictor or solver that is in them (docs/extending.md).

    Raises:
        UserError: there is no model in the folder, its files are damaged, it has no average of that length, it needs
            code that is not allowed, or the device is not available.
    """
    execute(allow_code)
    model, origin = open_model(path, ema_length)
    return TrainedModel(model, origin).to(device)


def grid(images: Tensor | np.ndarray, levels: int = 256, columns: int | None = None) -> Image.Image:
    """A picture of images side by side, magnified where they are small.

    Args:
        images: levels ``(N, C, H, W)`` uint8, grey or RGB.
        levels: of their data set; :meth:`TrainedModel.grid` knows those of its own.
        columns: None: about as many as rows.

    Raises:
        UserError: they are no such images.
    """
    given = _levels(images, levels)
    if given.dim() != 4 or given.shape[1] not in (1, 3):
        raise UserError(f"images: shape {tuple(given.shape)}; (N, C, H, W) with C = 1 or 3 is needed.")
    _check(0, columns=1 if columns is None else columns)
    return pictures.to_image(pictures.sheet(to_pixels(given, levels), columns))


@dataclass(frozen=True)
class BitsPerDim:
    """Negative log-likelihood in bits/dim.

    ``values`` of the images, ``(N,)`` float64, with ``errors``, the standard error of each over its draws (NaN of a
    single draw); ``estimate`` is the mean over the images with its two standard errors.
    """

    values: Tensor
    errors: Tensor
    estimate: Estimate

    @property
    def mean(self) -> float:
        """Over the images."""
        return self.estimate.mean


class TrainedModel:
    """A model with trained weights, in evaluation mode and float32. Made by :func:`load`.

    ``module`` is the model as a torch module, ``F(x, t, label)``; ``spec`` describes it: network, predictor, data
    set, shape, levels and names of the classes.
    """

    def __init__(self, module: Model, origin: ModelOrigin):
        self.module, self.origin = module, origin

    def __repr__(self) -> str:
        spec, labels = self.spec, f", {len(self.spec.classes)} classes" if self.spec.classes else ""
        size, name = "x".join(map(str, spec.shape)), excerpt(spec.dataset)
        return f"<fdtrain model of {name}: {spec.network}, {size}, {spec.levels} levels{labels}, {self.device}>"

    @property
    def spec(self) -> ModelSpec:
        return self.module.spec

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> "TrainedModel":
        """Move the weights to a device, in place; "auto" is the GPU where there is one.

        Raises:
            UserError: it is not available.
        """
        if device == "auto":
            device = distributed.device()
        self.module.to(open_device(device, "device"))
        return self

    def sample(
        self,
        count: int,
        *,
        steps: int | None = None,
        seed: int = 0,
        label: Label = None,
        guidance: float = 1.0,
        solver: str = DEFAULT,
        grid: str | Sequence[float] | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Draw images: levels ``(count, C, H, W)`` uint8, on the CPU.

        Args:
            steps: of the solver, from ``t = 1`` to ``t = 0``; None: 50, or those of the grid.
            seed: image ``i`` is a function of (seed, i), the same on any CPU.
            label: classes, of a class-conditional model; None: all in turn.
            guidance: ``F_null + guidance (F_label - F_null)``, of a model trained with ``network.label_dropout``.
            solver: a name in docs/sampling.md; "sde" and "ode" are the best.
            grid: name of a spacing of the times, times that fall from 1 to 0, or "optimised", as the command
                ``evaluate grid`` has found them; None: the default.
            batch: images that are computed together.
            progress: show a bar of the evaluations of the network, each of one batch.

        Raises:
            UserError: the model cannot be sampled so, or its output is not finite.
        """
        _check(seed, count=count, batch=batch)
        sampler = Sampler.checked(self.spec, self.origin, solver, grid, steps, guidance=guidance)
        labels = None if label is None else self._labels(label, count).tolist()
        evaluations = len(Stepper(solver, sampler.times(self.spec), self.spec.bound.interval).times)
        batches = [range(count)[first : first + batch] for first in range(0, count, batch)]
        parts = []
        with tqdm(total=len(batches) * evaluations, desc="sampling", disable=not progress) as bar:
            for images in batches:
                own = labels and [labels[i] for i in images]
                x = sampler.solve(self.module, images, seed, own, lambda *_: bar.update())
                parts.append(quantise(x, self.spec.levels).cpu())
        return torch.cat(parts)

    def bits_per_dim(
        self,
        images: Tensor | np.ndarray,
        *,
        label: Label = None,
        draws: int = 20,
        seed: int = 0,
        batch: int = 256,
    ) -> BitsPerDim:
        """The bound of each image: an upper bound, in the mean over draws, on its negative log-likelihood.

        Args:
            images: levels ``(N, C, H, W)`` uint8.
            label: classes of the images; of a model trained with ``network.label_dropout`` None: unconditional.
            draws: of dequantisation, time and noise for each image, stratified in time.
            batch: evaluations that are computed together.

        Raises:
            UserError: the images or labels are not the model's, or its output is not finite.
        """
        _check(seed, draws=draws, batch=batch)
        given = self._images(images, label)
        values = Likelihood(self.module, given, seed, batch).elbo(range(len(given)), draws)
        return BitsPerDim(values.mean(1), standard_errors(values), estimate(values))

    def log_prob(
        self,
        images: Tensor | np.ndarray,
        *,
        label: Label = None,
        dequantisations: int = 1,
        tolerance: float = TOLERANCE,
        exact: bool | None = None,
        seed: int = 0,
        batch: int = 256,
    ) -> Tensor:
        """Log-probability of each image in nats, ``(N,)`` float64, by the probability-flow ODE.

        It is that of the discrete image: ``-log_prob / (C H W ln 2)`` is in bits/dim. That of a dequantised image
        has an error below 0.002 bits/dim at the default tolerance, as measured (docs/evaluation.md); over the
        dequantisation the mean is a lower bound, which several dequantisations (importance-weighted) bring nearer.

        Args:
            images, label: as of :meth:`bits_per_dim`.
            dequantisations: of each image.
            tolerance: of a step of the adaptive solver; 3.1e-5 and coarser.
            exact: take the divergence exactly, by one backward pass per dimension, or estimate it with Hutchinson's
                probes, without bias; None: exactly up to 256 dimensions.

        Raises:
            UserError: the images or labels are not the model's, or its output is not finite.
        """
        _check(seed, dequantisations=dequantisations, batch=batch)
        if not (finest := finest_tolerance(torch.float32)) <= tolerance < math.inf:
            raise UserError(f"tolerance must be at least {finest:.1e} in float32.")
        given, spec = self._images(images, label), self.spec
        exact = spec.dims <= EXACT_TRACE_DIMS if exact is None else exact
        likelihood = Likelihood(self.module, given, seed, batch)
        nats, _ = likelihood.ode(range(len(given)), tolerance, dequantisations, exact)
        return -ode_bits(nats, spec)[:, 0] * spec.dims * math.log(2)

    def field(self, x: Tensor, t: Tensor | float, *, label: Label = None, guidance: float = 1.0) -> Tensor:
        """The field ``F(x, t)``, from which score, noise and image are predicted (docs/method.md, section 2).

        ``x`` is ``(N, C, H, W)`` float32 on any device, ``t`` one time in the model's interval ([0, 1], unless
        ``spec.interval`` is a truncated one) or ``(N,)`` of them, ends included.
        The result is like ``x``, on the model's device, and differentiable in ``x``.

        Raises:
            UserError: shapes, times or labels do not fit, or the model cannot be guided.
        """
        if tuple(x.shape[1:]) != self.spec.shape:
            raise UserError(f"x: images of shape {tuple(x.shape[1:])}, this model takes {self.spec.shape}.")
        times = torch.as_tensor(t, dtype=torch.float64, device=self.device)
        if times.dim() == 0:
            times = times.expand(len(x))
        first, last = self.spec.interval
        if times.shape != (len(x),) or not ((times >= first) & (times <= last)).all():
            raise UserError(f"t: give one time in [{first:g}, {last:g}], or one for each image.")
        labels = self._labels(label, len(x)).to(self.device) if self.spec.classes or label is not None else None
        return self.module.field(labels, guidance)(x.to(self.device), times)

    def pixels(self, images: Tensor) -> Tensor:
        """Levels as pixels from 0 to 255, for showing and saving; the same where there are 256 levels."""
        return to_pixels(images, self.spec.levels)

    def grid(self, images: Tensor | np.ndarray, columns: int | None = None) -> Image.Image:
        """A picture of levels side by side: :func:`fdtrain.grid`."""
        return grid(images, self.spec.levels, columns)

    def _labels(self, label: Label, count: int) -> Tensor:
        """Numbers of the classes of ``count`` images, ``(count,)`` int64."""
        spec, names = self.spec, self.spec.classes
        if not names:
            raise UserError("label: this model was trained without labels.")
        if label is None:
            if not spec.null_class:
                raise UserError(f"label: this model is class-conditional; give classes 0 to {len(names) - 1}.")
            return torch.full((count,), spec.null_label)
        given = label.tolist() if isinstance(label, Tensor | np.ndarray) else label
        each = [given] * count if isinstance(given, int | str) else list(given)
        if len(each) != count:
            raise UserError(f"label: {len(each)} labels for {count} images. Give one for all, or one for each.")
        numbers = [names.index(one) if one in names else one for one in each]
        if wrong := [one for one in numbers if not (isinstance(one, int) and 0 <= one < len(names))]:
            shown = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
            raise UserError(f"label {wrong[0]!r}: this model has classes 0 to {len(names) - 1}: {shown}.")
        return torch.tensor(numbers)

    def _images(self, images: Tensor | np.ndarray, label: Label) -> "_InMemory":
        levels, spec = _levels(images, self.spec.levels), self.spec
        if tuple(levels.shape[1:]) != spec.shape:
            raise UserError(f"images: shape {tuple(levels.shape)}, this model needs (N, C, H, W) = (N, *{spec.shape}).")
        labelled = spec.classes or label is not None
        return _InMemory(levels, self._labels(label, len(levels)) if labelled else torch.full((len(levels),), -1))


@dataclass(frozen=True)
class _InMemory:
    """Images and labels where the evaluation expects those of a split."""

    levels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.levels)

    def batch(self, images: range) -> Batch:
        part = slice(images.start, images.stop)
        return self.levels[part], self.labels[part]


def _levels(images: Tensor | np.ndarray, count: int) -> Tensor:
    """Images of ``count`` levels on the CPU. Raises UserError: they have other values, or there are none."""
    levels = torch.as_tensor(images).cpu()
    if levels.dtype != torch.uint8 or not levels.numel():
        raise UserError(f"images: levels of type uint8 are needed, these are {levels.numel()} of {levels.dtype}.")
    if (highest := int(levels.max())) >= count:
        raise UserError(f"images: level {highest}, where {count} levels are 0 to {count - 1}.")
    return levels


def _check(seed: int, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1.")
    check_seed(seed, "seed")
