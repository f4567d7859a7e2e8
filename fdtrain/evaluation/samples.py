"""Images from a model: image ``i`` depends on (seed, i) alone, whatever the batch and however many processes."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fdtrain.diffusion.objective import quantise
from fdtrain.diffusion.predictors import x0_hat
from fdtrain.diffusion.solvers import DEFAULT, sample
from fdtrain.errors import UserError
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, normal

PATH_IMAGES = 8
"""Images of a denoising path, the sample itself included."""
ABOUT = "fdtrain"
"""The text of a PNG that says, in JSON, what the picture shows and how it was drawn."""
SMALL_IMAGE, SHEET_WIDTH = 48, 300
"""Pixels to which an image and a sheet are magnified where they have fewer, by whole factors and so about."""


@torch.no_grad()
def solve(
    model: Model,
    images: Sequence[int],
    labels: Sequence[int] | None,
    times: Sequence[float],
    solver: str = DEFAULT,
    seed: int = 0,
    guidance: float = 1.0,
    observe: Callable[[float, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The images with the given numbers before they are rounded to levels, ``(n, C, H, W)`` on the model's device.

    Args:
        labels: one class per image, for a class-conditional model.
        times: falling from 1 to 0, or within the model's interval: :func:`fdtrain.diffusion.solvers.time_grid`.
        guidance: 1 samples the model itself; see :meth:`Model.field`.
        observe: as of :func:`fdtrain.diffusion.solvers.sample`.

    Raises:
        UserError: the model's output is not finite, or it cannot be guided.
    """
    device = next(model.parameters()).device
    field = model.field(torch.tensor(labels, device=device) if labels else None, guidance)

    def noise(step: int) -> Tensor:
        return normal(model.spec.shape, device, seed, Purpose.SAMPLE, [(image, step + 1) for image in images])

    # noise(-1) is the draw of x_1.
    x = sample(field, noise(-1), times, solver, noise, observe, model.spec.bound.interval)
    if not torch.isfinite(x).all():
        raise UserError("the model's output is not finite: its weights are broken, or training diverged.")
    return x


def denoising_paths(
    model: Model,
    images: Sequence[int],
    labels: Sequence[int] | None,
    times: Sequence[float],
    solver: str = DEFAULT,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Predicted images on the way to samples, ``(n, PATH_IMAGES, C, H, W)`` uint8 below ``spec.levels``, on the CPU.

    The last are the samples themselves. Arguments and errors as of :func:`solve`.
    """
    levels, wanted = model.spec.levels, path_times(times)
    parts = [torch.empty(0, PATH_IMAGES, *model.spec.shape, dtype=torch.uint8)]
    for i in range(0, len(images), batch):
        part, path = slice(i, i + batch), {}

        def observe(t: float, x: Tensor, F: Tensor, path: dict[float, Tensor] = path) -> None:
            if t in wanted:
                time = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
                path[t] = quantise(x0_hat(F, x, time), levels)

        x = solve(model, images[part], labels and labels[part], times, solver, seed, observe=observe)
        path[times[-1]] = quantise(x, levels)
        parts.append(torch.stack([path[t] for t in wanted], 1).cpu())
    return torch.cat(parts)


def path_times(times: Sequence[float]) -> list[float]:
    """The times of the images of a denoising path."""
    # Evenly in time, of the times there are: a grid that is dense near the data changes little there.
    even = np.linspace(1, 0, PATH_IMAGES)[:-1]
    return [*(times[int(np.abs(np.asarray(times[:-1]) - t).argmin())] for t in even), times[-1]]


def to_pixels(levels: Tensor, count: int) -> Tensor:
    """Images of ``count`` levels to the range 0 to 255, uint8."""
    return (levels.float() * (255 / (count - 1))).round().to(torch.uint8)


def grid(images: Tensor, columns: int, zoom: int = 1) -> Tensor:
    """Images ``(n, C, H, W)`` side by side, row by row, with a line of two pixels between: ``(C, H', W')``."""
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    n, channels, height, width = images.shape
    rows, gap = -(-n // columns), 2
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def save_png(pixels: Tensor, to: Path | BinaryIO, about: dict[str, Any] | None = None) -> None:
    """Write ``(C, H, W)`` uint8, one channel or three; ``about`` says in the file what it shows."""
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    text = PngInfo()
    if about is not None:
        text.add_text(ABOUT, json.dumps(about))
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(to, "png", pnginfo=text)


def described(picture: Image.Image) -> dict[str, Any]:
    """What :func:`save_png` was told of a picture; nothing of one that was not written by it."""
    try:
        content = json.loads(picture.info.get(ABOUT, "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def zoom_for(size: int, columns: int) -> int:
    """Magnification that makes small images, and a sheet of few columns of them, large enough to look at."""
    return max(1, SMALL_IMAGE // size, min(math.ceil(SHEET_WIDTH / (columns * size)), SHEET_WIDTH // size))
