"""What is done to photographs of any size, by a survey of their headers."""

from collections import Counter
from collections.abc import Mapping, Sequence

from fdtrain.console import phase
from fdtrain.data.dataset import Preparation
from fdtrain.data.sources.archive import Member, read
from fdtrain.data.sources.picture import Fit, Header, inspect
from fdtrain.data.sources.source import BadSample


def method(size: int) -> str:
    return f"largest centre square, Lanczos to {size}x{size}"


def survey(splits: Mapping[str, Sequence[Member]], fit: Fit) -> Preparation:
    """What photographs each split has, and how they are fitted.

    A bad photograph is left to the packer, which reports all bad images.
    """
    headers: list[Header] = []
    photographs = [member for members in splits.values() for member in members]
    with phase(f"reading the headers of {len(photographs):,} photographs"):
        for member in photographs:
            try:
                file = member.path if member.kind == "file" else read(member)
                headers.append(inspect(file, str(member), fit.channels, fit.background))
            except BadSample:
                continue
    pixels = [f"{width}x{height}" for width, height in sorted((h.size for h in headers), key=lambda s: s[0] * s[1])]
    return Preparation(
        method=method(fit.size),
        photographs={split: len(members) for split, members in splits.items()},
        pixels=[pixels[0], pixels[len(pixels) // 2], pixels[-1]] if pixels else [],
        turned=sum(header.turned for header in headers),
        converted=dict(sorted(Counter(header.converted for header in headers if header.converted).items())),
        enlarged=sum(min(header.size) < fit.size for header in headers),
    )
