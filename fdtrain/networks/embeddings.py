"""Bounded features of the two numbers that a network needs exactly: the time and, within its level, a pixel."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def positional(t: Tensor, channels: int, levels: int) -> Tensor:
    """Sines and cosines of ``1000 t`` at ``channels / 2`` frequencies from 1 down to 1e-4, shape ``(B, channels)``.

    Bounded on the whole of [0, 1]; resolves times down to about 1e-3 and is smooth below.
    """
    half = channels // 2
    frequency = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(1e4) / (half - 1)))
    return _waves(1000.0 * t, frequency)


def fourier(t: Tensor, channels: int, levels: int) -> Tensor:
    """Sines and cosines of ``t`` and of ``asinh(levels t) / asinh(levels)``, shape ``(B, 2 channels)``.

    The second argument is a log-SNR that stays finite: it resolves times by their ratio above 1 / levels, as
    the logarithm of Song et al. 2021 does, and by their difference below. The frequencies have their normal
    distribution of standard deviation 16, but are its quantiles, not draws, and so need no storing.
    """
    count = channels // 2
    rank = (torch.arange(count, device=t.device, dtype=t.dtype) + 0.5) / count
    frequency = 2 * math.pi * 16 * math.sqrt(2) * torch.special.erfinv(rank)
    return torch.cat([_waves(t, frequency), _waves(torch.asinh(levels * t) / math.asinh(levels), frequency)], 1)


TIME_EMBEDDINGS: dict[str, tuple[Callable[[Tensor, int, int], Tensor], int]] = {
    "positional": (positional, 1),
    "fourier": (fourier, 2),
}
"""Name to function and to its width, in units of ``channels``."""


def _waves(argument: Tensor, frequency: Tensor) -> Tensor:
    angle = argument[:, None] * frequency[None]
    return torch.cat([angle.sin(), angle.cos()], 1)


FINEST = -3
"""The first of :func:`all_octaves`: the edges of a level are sharper than a sine of its period (ours, measured)."""


def all_octaves(levels: int) -> tuple[int, int]:
    """First octave and the one after the last: periods of an eighth of a level up to the range of the values."""
    return FINEST, int(math.log2(levels))


class PixelFeatures(nn.Module):
    """A network's image with sines and cosines of the pixels as further channels: ``C`` to ``C (1 + 2 octaves)``.

    Octave ``k`` has a period of ``2^k`` levels: at noise ``t`` a network must tell differences of size ``t``
    in pixels of size 1, and an octave with a period of about ``t`` shows it just these. Noise erases the octaves with
    shorter periods: the mean of ``sin(w (alpha x0 + t eps))`` over it is ``sin(w alpha x0) exp(-(w t)^2 / 2)``. By
    this factor each octave fades, lest it be a loud function that says nothing. VDM (Kingma et al. 2021, appendix C)
    has octaves 0 and 1 of the network's image, which do not fade.
    """

    def __init__(self, levels: int, octaves: int | Sequence[int], fading: bool):
        """``octaves``: the first and the one after the last; or their number, from one level upwards."""
        super().__init__()
        span = range(octaves) if isinstance(octaves, int) else range(*octaves)
        self.frequencies, self.fading = [math.pi * levels * 2.0**-octave for octave in span], fading

    def forward(self, image: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``image`` ``(B, C, H, W)`` as the network sees ``x``, the noisy image at times ``t``, ``(B,)``."""
        sines, cosines = [], []
        for w in self.frequencies:
            angle = w * (x if self.fading else image)
            fade = torch.exp(-0.5 * (w * t) ** 2).to(x.dtype)[:, None, None, None] if self.fading else 1.0
            sines.append(angle.sin() * fade)
            cosines.append(angle.cos() * fade)
        return torch.cat([image, *sines, *cosines], 1)

    def channels(self, image_channels: int) -> int:
        return image_channels * (1 + 2 * len(self.frequencies))
