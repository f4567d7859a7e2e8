"""Pictures of images, for a page: what training and sampling have drawn, and images of the data."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.evaluation import samples
from fdtrain.evaluation.wording import counted, short

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises of a file that is no picture, or that pretends to be a huge one."""


@dataclass(frozen=True)
class Picture:
    """A PNG file in base64, magnified without smoothing; ``columns`` are headings over equal parts of its width."""

    data: str
    caption: str
    columns: list[str] = field(default_factory=list)


def of_file(path: Path, title: str) -> Picture:
    """A sheet of samples or a denoising path, with what its file says of it.

    Raises:
        UserError: it is not a PNG.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            about = samples.described(picture)
    except UNREADABLE as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(f"{path} is no PNG{reason}. Delete it, or draw it again.") from error
    times = about.get("times")
    columns = [f"t = {t:.3g}" for t in times] if isinstance(times, list) and _numbers(times) else []
    return Picture(base64.b64encode(data).decode(), f"{title}{_made_by(about)}", columns)


def images_in(path: Path) -> int | None:
    """The number of images of a sheet, if its file says so."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            count = samples.described(picture).get("images")
    except UNREADABLE:
        return None
    return count if isinstance(count, int) and 0 < count <= 10_000 else None


def of_images(levels: Tensor, count_of_levels: int, caption: str) -> Picture:
    """Images ``(n, C, H, W)`` uint8 of so many levels, on a sheet as samples are drawn."""
    pixels = samples.to_pixels(levels, count_of_levels)
    columns = max(1, round(len(pixels) ** 0.5))
    return _encoded(samples.grid(pixels, columns, samples.zoom_for(pixels.shape[-1], columns)), caption)


def of_image(levels: Tensor, count_of_levels: int, caption: str) -> Picture:
    """One image ``(C, H, W)`` uint8 of so many levels."""
    return _encoded(samples.to_pixels(levels, count_of_levels), caption)


def _encoded(pixels: Tensor, caption: str) -> Picture:
    file = io.BytesIO()
    samples.save_png(pixels, file)
    return Picture(base64.b64encode(file.getvalue()).decode(), caption)


def _made_by(about: dict[str, Any]) -> str:
    """A clause on how samples were drawn; nothing of a picture that does not say it."""
    if not about.get("solver"):
        return "."
    grid = about.get("grid")
    parts = [
        f"solver {short(about['solver'])}",
        "times of its own" if isinstance(grid, list) else f"grid {short(grid)}",
    ]
    if isinstance(nfe := about.get("nfe"), int):
        parts.append(f"{counted(nfe, 'evaluation')} of the network per image")
    if about.get("guidance") not in (None, 1, 1.0):
        parts.append(f"guidance {short(about['guidance'])}")
    parts += [f"{name} {short(about[name])}" for name in ("seed", "step") if about.get(name) is not None]
    return f": {', '.join(parts)}."


def _numbers(values: list[Any]) -> bool:
    return len(values) <= 100 and all(isinstance(value, int | float) for value in values)
