"""DDPM++: the residual U-Net of Song et al. 2021 ("Score-Based Generative Modeling through SDEs", appendix H).

BigGAN-type residual blocks, which also resample; self-attention at chosen resolutions; skip connections
rescaled by 1/sqrt(2); the last convolution of every branch starts at zero, and so does the output: an
untrained network is the standard normal, exactly.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fdtrain.networks import recompute
from fdtrain.networks.embeddings import TIME_EMBEDDINGS
from fdtrain.networks.layers import Dropout, group_norm, pixel_attention


def _conv(inputs: int, outputs: int, kernel: int = 3, zero: bool = False) -> nn.Conv2d:
    """Convolution with Glorot-uniform weights, as the published code has it, or zeros; bias zero."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    _init(conv, zero)
    return conv


def _dense(inputs: int, outputs: int) -> nn.Linear:
    dense = nn.Linear(inputs, outputs)
    _init(dense, zero=False)
    return dense


def _init(layer: nn.Conv2d | nn.Linear, zero: bool) -> None:
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """Two convolutions with the time embedding added between; ``resample`` is ``"up"``, ``"down"`` or None."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, resample: str | None = None):
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = group_norm(inputs), _conv(inputs, outputs)
        self.time = _dense(embedding, outputs)
        self.norm2, self.conv2 = group_norm(outputs), _conv(outputs, outputs, zero=True)
        self.dropout = Dropout(dropout)
        self.shortcut = _conv(inputs, outputs, kernel=1) if inputs != outputs or resample else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = nnf.silu(self.norm1(x))
        if self.resample == "down":
            h, x = nnf.avg_pool2d(h, 2), nnf.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = nnf.interpolate(h, scale_factor=2.0), nnf.interpolate(x, scale_factor=2.0)
        h = self.conv1(h) + self.time(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(nnf.silu(self.norm2(h))))
        return (self.shortcut(x) + h) / math.sqrt(2)


class Attention(nn.Module):
    """Single-head self-attention over the pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = _conv(channels, 3 * channels, kernel=1)
        self.out = _conv(channels, channels, kernel=1, zero=True)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return (x + pixel_attention(x, self.norm, self.qkv, self.out)) / math.sqrt(2)


class DDPMpp(nn.Module):
    """The U-Net.

    Args:
        image_channels: C of the images.
        image_size: H = W of the images, divisible by 2 once per multiplier after the first.
        levels: values a pixel takes, which sets the times that the embedding tells apart.
        classes: number of class labels; 0 for an unconditional network.
        channels: width at full resolution.
        multipliers: width of each level, in units of ``channels``; the resolution halves from level to level.
        blocks: residual blocks of a level on the way down (one more on the way up).
        attention: resolutions, in pixels, at which the blocks are followed by self-attention.
        dropout: within the residual blocks.
        time_embedding: ``"positional"`` (DDPM++) or ``"fourier"`` (NCSN++).
        input_channels: of the input, where :class:`PixelFeatures` are joined to the image; None: C.
        checkpointing: recompute each stage's activations instead of keeping them.

    Raises:
        ValueError: the images cannot be halved once per level.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        levels: int,
        classes: int = 0,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        time_embedding: str = "positional",
        input_channels: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"images of {image_size} pixels cannot be halved {len(multipliers) - 1} times; give fewer multipliers"
            )
        self.channels, self.levels, self.checkpointing = channels, levels, checkpointing
        self.time_embedding, width = TIME_EMBEDDINGS[time_embedding]
        embedding = 4 * channels
        self.embed = nn.Sequential(
            _dense(width * channels, embedding), nn.SiLU(), _dense(embedding, embedding), nn.SiLU()
        )
        self.embed_label = nn.Embedding(classes, embedding) if classes else None
        self.input = _conv(input_channels or image_channels, channels)

        def residual(inputs: int, outputs: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding, dropout, resample)

        width, size, skips = channels, image_size, [channels]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(nn.ModuleList([residual(width, width, "down")]))
                size //= 2
                skips.append(width)
            for _ in range(blocks):
                stage: list[nn.Module] = [residual(width, multiplier * channels)]
                width = multiplier * channels
                if size in attention:
                    stage.append(Attention(width))
                self.down.append(nn.ModuleList(stage))
                skips.append(width)

        self.middle = nn.ModuleList([residual(width, width), Attention(width), residual(width, width)])

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                modules: list[nn.Module] = [residual(width + skips.pop(), multiplier * channels)]
                width = multiplier * channels
                if block == blocks:
                    # As published: on the way up attention follows a level's last block only.
                    if size in attention:
                        modules.append(Attention(width))
                    if level > 0:
                        modules.append(residual(width, width, "up"))
                        size *= 2
                self.up.append(nn.ModuleList(modules))

        self.output = nn.Sequential(group_norm(width), nn.SiLU(), _conv(width, image_channels, zero=True))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.embed(self.time_embedding(t, self.channels, self.levels))
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(label)
        h = self.input(x)
        skips = [h]
        for stage in self.down:
            h = self._run(stage, embedding, h)
            skips.append(h)
        h = self._run(self.middle, embedding, h)
        for stage in self.up:
            h = self._run(stage, embedding, h, skips.pop())
        return self.output(h)

    def _run(self, stage: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        """The modules of a stage, an ``nn.ModuleList``, in turn, on inputs joined by channel."""

        def modules(embedding: Tensor, *inputs: Tensor) -> Tensor:
            h = torch.cat(inputs, 1) if inputs[1:] else inputs[0]
            for module in stage:
                h = module(h, embedding)
            return h

        return recompute.call(modules, embedding, *inputs, recompute=self.checkpointing)
