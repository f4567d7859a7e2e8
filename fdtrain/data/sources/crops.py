"""Random square crops of photographs, and a survey of what photographs there are.

The side of a crop is drawn between the size of the images and the short side of the photograph, uniformly in its
logarithm: natural images look alike at all scales (Ruderman 1994), and a crop at the smallest is of native pixels.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fdtrain.data.dataset import Preparation
from fdtrain.data.sources.archive import Member, read
from fdtrain.data.sources.picture import Colour, Fit, Header, inspect, upright
from fdtrain.data.sources.source import BadSample, Sample, even
from fdtrain.errors import UserError

REPORTED = 20
"""Photographs that cannot be cropped and are reported one by one."""


@dataclass(frozen=True)
class CropFiles:
    """Consecutive photographs with their labels; ``crops`` images of each follow each other."""

    members: tuple[Member, ...]
    labels: tuple[int, ...]
    size: int
    channels: int
    crops: int
    background: Colour | None = None

    def count(self) -> int:
        return len(self.members) * self.crops

    def open(self) -> Callable[[int], Sample]:
        return _Reader(self)

    def identity(self) -> str:
        listed = [(member.name, member.size) for member in self.members]
        background = () if self.background is None else (self.background,)
        return repr((listed, self.labels, self.size, self.channels, self.crops, *background))


class _Reader:
    """The crops of a part. One photograph is in memory."""

    def __init__(self, part: CropFiles):
        self.part, self.number = part, -1
        self.picture: Image.Image | None = None

    def __call__(self, index: int) -> Sample:
        part, (number, crop) = self.part, divmod(index, self.part.crops)
        if number != self.number or self.picture is None:
            self._read(number)
        assert self.picture is not None
        left, top, side = map(int, self.squares[crop])
        box = (left, top, left + side, top + side)
        image = self.picture.resize((part.size, part.size), Image.Resampling.LANCZOS, box, reducing_gap=3.0)
        return np.asarray(image).reshape(part.size, part.size, part.channels), part.labels[number]

    def _read(self, number: int) -> None:
        member = self.part.members[number]
        try:
            self.picture = upright(read(member), str(member), self.part.channels, self.part.background)
        except BadSample as error:
            # Its crops would be reported one by one.
            raise UserError(str(error)) from error
        self.number = number
        self.squares = squares(member.name, self.picture.size, self.part.size, self.part.crops)


def squares(name: str, size: tuple[int, int], smallest: int, count: int) -> np.ndarray:
    """``(count, 3)``: left, top and side of the crops of a photograph, a function of its name and (width, height)."""
    key = np.frombuffer(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:16], "<u8")
    draws = np.random.Generator(np.random.Philox(key=key)).random((count, 3))
    short = min(size)
    # Every side is the floor of a value below short + 1.
    sides = np.floor(smallest * ((short + 1) / smallest) ** draws[:, 0]).clip(smallest, short)
    room = np.array(size) - sides[:, None] + 1
    return np.concatenate([np.floor(draws[:, 1:] * room), sides[:, None]], axis=1).astype(np.int64)


def crop_parts(
    members: Sequence[Member], labels: Sequence[int] | None, fit: Fit, crops: int, share: int
) -> list[CropFiles]:
    """Photographs in the order given, in parts of about ``share`` crops of the fit's size, channels and background."""
    labels = [-1] * len(members) if labels is None else labels
    return [
        CropFiles(
            tuple(members[run.start : run.stop]),
            tuple(labels[run.start : run.stop]),
            fit.size,
            fit.channels,
            crops,
            fit.background,
        )
        for run in even(len(members), max(1, share // crops))
    ]


def survey(splits: Mapping[str, Sequence[Member]], fit: Fit, crops: int | None) -> Preparation:
    """What photographs there are and what is done to them, by their headers alone.

    Args:
        splits: the photographs of each split.
        fit: of the images.
        crops: of each photograph; ``None``: the largest centred square.

    Raises:
        UserError: photographs that cannot be cropped. (A bad photograph of which one image is made is a bad image, and
            is reported as such.)
    """
    size = fit.size
    headers: list[Header] = []
    problems: list[str] = []
    for member in (member for members in splits.values() for member in members):
        try:
            file = member.path if member.kind == "file" else read(member)
            header = inspect(file, str(member), fit.channels, fit.background)
            if crops and min(header.size) < size:
                width, height = header.size
                raise BadSample(f"{member} has {width}x{height} pixels, too few for crops of {size}x{size}. Remove it.")
            headers.append(header)
        except BadSample as error:
            problems.append(str(error))
    if crops and problems:
        shown = problems[:REPORTED]
        first = f"{len(problems)} photographs cannot be cropped. The first {len(shown)}:"
        raise UserError([first, *shown] if len(problems) > 1 else problems)
    pixels = [f"{width}x{height}" for width, height in sorted((h.size for h in headers), key=lambda s: s[0] * s[1])]
    return Preparation(
        method=method(size, crops),
        photographs={split: len(members) for split, members in splits.items()},
        crops=crops or 1,
        pixels=[pixels[0], pixels[len(pixels) // 2], pixels[-1]] if pixels else [],
        turned=sum(header.turned for header in headers),
        converted=dict(sorted(Counter(header.converted for header in headers if header.converted).items())),
        enlarged=sum(min(header.size) < size for header in headers),
    )


def method(size: int, crops: int | None) -> str:
    if crops is None:
        return f"largest centre square, Lanczos to {size}x{size}"
    return f"{crops} random squares of each photograph, sides from {size} to its short side, Lanczos to {size}x{size}"
