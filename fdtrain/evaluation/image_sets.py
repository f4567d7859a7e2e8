"""Sets of images to measure, by number, as pixels from 0 to 255: a split, a model's samples, or samples on disk."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain.data.dataset import FILE, read_description
from fdtrain.data.sources.picture import decode, fit_like
from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation.samples import Sampler, to_pixels
from fdtrain.networks.model import Model


@dataclass(frozen=True)
class PixelSet:
    """``batch(range)`` gives images ``(n, C, H, W)`` uint8. ``metadata`` is what is known of their origin."""

    name: str
    count: int
    shape: tuple[int, int, int]
    batch: Callable[[range], Tensor]
    metadata: dict[str, Any]


def of_split(split: Split, most: int | None = None) -> PixelSet:
    """Its images, or at most so many of them at equal distances."""
    step = -(-len(split) // most) if most else 1
    numbers, levels = range(0, len(split), step), split.description.levels

    def batch(images: range) -> Tensor:
        return to_pixels(split.batch(numbers[images.start : images.stop])[0], levels)

    return PixelSet(f"{split.description.name}/{split.name}", len(numbers), split.description.shape, batch, {})


def in_memory(name: str, pixels: Tensor, metadata: dict[str, Any] | None = None) -> PixelSet:
    """Images in memory, ``(n, C, H, W)`` uint8."""
    return PixelSet(
        name,
        len(pixels),
        (pixels.shape[1], pixels.shape[2], pixels.shape[3]),
        lambda i: pixels[i.start : i.stop],
        metadata or {},
    )


def of_model(model: Model, sampler: Sampler, seed: int, count: int) -> PixelSet:
    """Samples, drawn as they are asked for."""

    def batch(images: range) -> Tensor:
        return to_pixels(sampler.draw(model, images, seed), model.spec.levels)

    return PixelSet(f"set {seed}", count, model.spec.shape, batch, {})


def mirrored(images: PixelSet) -> PixelSet:
    """The images, and after them their mirror images."""

    def batch(wanted: range) -> Tensor:
        count = images.count
        plain = range(wanted.start, min(wanted.stop, count))
        flipped = range(max(wanted.start, count) - count, wanted.stop - count)
        parts = [images.batch(plain)] if plain else []
        return torch.cat([*parts, images.batch(flipped).flip(-1)] if flipped else parts)

    return PixelSet(f"{images.name} and mirrored", 2 * images.count, images.shape, batch, images.metadata)


def open_samples(path: Path) -> PixelSet:
    """Samples on disk: a .npz, a packed data set, or a folder of images, in the order of their names.
    Raises UserError: there are none; here or from ``batch``, a file is broken or not of the others' size."""
    if path.suffix == ".npz":
        return _npz(path)
    if not path.is_dir():
        raise UserError(f"no samples at {path}: neither a .npz file nor a folder.")
    if (path / FILE).is_file():
        splits = read_description(path).splits
        if len(splits) > 1:
            raise UserError(
                f"{path} is a data set of several splits, not samples. Give a folder that fdtrain sample has packed."
            )
        stored = of_split(Split(path, next(iter(splits), "train")))
        return replace(stored, name=str(path), metadata=metadata(path / "samples.json"))
    return _pictures(path)


def _npz(path: Path) -> PixelSet:
    try:
        with np.load(path, allow_pickle=False) as content:
            images = content["arr_0"]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}).") from error
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no samples ({error}). Expected arr_0, uint8 (n, H, W, C).") from error
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or images.shape[3] not in (1, 3):
        raise UserError(f"{path}: arr_0 is {images.dtype} of shape {images.shape}, expected uint8 (n, H, W, 1 or 3).")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return in_memory(str(path), pixels, metadata(path.with_name(f"{path.name}.json")))


def _pictures(path: Path) -> PixelSet:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp"))
    if not files:
        raise UserError(f"{path} holds no images.")
    fit = fit_like(files[0].read_bytes(), str(files[0]), None, None)

    def read(file: Path) -> np.ndarray:
        data = file.read_bytes()
        stored = fit_like(data, str(file), None, None)
        if stored != fit:
            expected, actual = (f"{f.size}x{f.size} with {f.channels} channels" for f in (fit, stored))
            raise UserError(
                f"{file} is {actual}, but {files[0].name} is {expected}. A sample set has images of one size."
            )
        return decode(data, str(file), fit)

    def batch(images: range) -> Tensor:
        return torch.from_numpy(np.stack([read(file) for file in files[images.start : images.stop]])).permute(
            0, 3, 1, 2
        )

    return PixelSet(str(path), len(files), (fit.channels, fit.size, fit.size), batch, metadata(path / "samples.json"))


def metadata(path: Path) -> dict[str, Any]:
    """What ``fdtrain sample`` has written beside its samples, in this file; of others nothing is known."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
