"""Pictures of images: sheets as PNG files that say what they show, and pictures for a page."""

import base64
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.evaluation.wording import counted, short

ABOUT = "fdtrain"
"""The text of a PNG that says, in JSON, what the picture shows and how it was drawn."""
SMALL_IMAGE, SHEET_WIDTH = 48, 300
"""Pixels to which an image and a sheet are magnified where they have fewer, by whole factors and so about."""
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises of a file that is no picture, or that pretends to be a huge one."""


def sheet(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Images ``(n, C, H, W)`` side by side, about as many rows as columns unless told, small ones magnified."""
    columns = columns or max(1, round(len(pixels) ** 0.5))
    return grid(pixels, columns, zoom_for(pixels.shape[-1], columns))


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
    text = PngInfo()
    if about is not None:
        text.add_text(ABOUT, json.dumps(about))
    to_image(pixels).save(to, "png", pnginfo=text)


def to_image(pixels: Tensor) -> Image.Image:
    """``(C, H, W)`` uint8, one channel or three."""
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def zoom_for(size: int, columns: int) -> int:
    """Magnification that makes small images, and a sheet of few columns of them, large enough to look at."""
    return max(1, SMALL_IMAGE // size, min(math.ceil(SHEET_WIDTH / (columns * size)), SHEET_WIDTH // size))


@dataclass(frozen=True)
class Picture:
    """A PNG file, magnified without smoothing; ``columns`` are headings over equal parts of its width, ``images`` is
    the number of images on it, where that is known."""

    png: bytes
    caption: str
    columns: list[str] = field(default_factory=list)
    images: int | None = None

    @property
    def source(self) -> str:
        """As an image of an HTML page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def of_pixels(pixels: Tensor, caption: str) -> Picture:
    """An image or a sheet ``(C, H, W)`` uint8."""
    file = io.BytesIO()
    save_png(pixels, file)
    return Picture(file.getvalue(), caption)


def of_file(path: Path, title: str) -> Picture:
    """A sheet of samples or a denoising path, with what its file says of it. Raises UserError: it is not a PNG."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            text = picture.info.get(ABOUT, "{}")
    except UNREADABLE as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(f"{path} is no PNG{reason}. Delete it, or draw it again.") from error
    try:
        about = About.model_validate_json(text)
    except ValidationError:
        about = About()
    columns = [f"t = {t:.3g}" for t in about.times]
    return Picture(data, f"{title}{about.clause}", columns, about.images)


class About(BaseModel):
    """What :func:`save_png` was told of a picture; nothing of one that was not written by it."""

    images: int | None = Field(default=None, gt=0, le=10_000)
    times: list[float] = Field(default=[], max_length=100)
    solver: str | None = None
    grid: str | list[float] | None = None
    nfe: int | None = None
    guidance: float | None = None
    seed: int | None = None
    step: int | None = None

    @property
    def clause(self) -> str:
        """How samples were drawn."""
        if not self.solver:
            return "."
        grid = "times of its own" if isinstance(self.grid, list) else f"grid {short(self.grid)}"
        parts = [f"solver {short(self.solver)}", grid]
        if self.nfe is not None:
            parts.append(f"{counted(self.nfe, 'evaluation')} of the network per image")
        if self.guidance not in (None, 1.0):
            parts.append(f"guidance {self.guidance:g}")
        named = {"seed": self.seed, "step": self.step}
        parts += [f"{name} {short(value)}" for name, value in named.items() if value is not None]
        return f": {', '.join(parts)}."
