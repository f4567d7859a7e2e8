"""VDM: the network of Kingma et al. 2021 ("Variational Diffusion Models"), behind 2.65 bits/dim on CIFAR-10.

Residual blocks at full resolution throughout, as many again that take the outputs of the first by skip
connections, attention in the middle only. Against the published code: a label takes the place of its
``conditioning`` scalar, and the output is ``f`` alone, not ``f + x``, which is the predictor's to add
(``network_skip``).
"""

from typing import TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fdtrain.networks import recompute
from fdtrain.networks.embeddings import positional
from fdtrain.networks.layers import Dropout, group_norm, pixel_attention

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def _init(layer: Layer, zero: bool = False) -> Layer:
    """Normal weights of variance 1 / inputs, or zeros; bias zero."""
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(inputs: int, outputs: int, kernel: int = 3, zero: bool = False) -> nn.Conv2d:
    return _init(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), zero)


class ResidualBlock(nn.Module):
    """Two convolutions with the condition added between, on ``x`` or on ``x`` and a skip connection joined."""

    def __init__(self, inputs: int, channels: int, condition: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), _conv(inputs, channels)
        self.condition = _init(nn.Linear(condition, channels, bias=False), zero=True)
        self.norm2, self.conv2 = group_norm(channels), _conv(channels, channels, zero=True)
        self.dropout = Dropout(dropout)
        self.shortcut = _conv(inputs, channels, kernel=1) if inputs != channels else nn.Identity()

    def forward(self, condition: Tensor, *inputs: Tensor) -> Tensor:
        x = torch.cat(inputs, 1) if inputs[1:] else inputs[0]
        h = self.conv1(nnf.silu(self.norm1(x))) + self.condition(condition)[:, :, None, None]
        h = self.conv2(self.dropout(nnf.silu(self.norm2(h))))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention over the pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = _conv(channels, 3 * channels, kernel=1)
        self.out = _conv(channels, channels, kernel=1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + pixel_attention(x, self.norm, self.qkv, self.out)


class VDM(nn.Module):
    """The network.

    Args:
        image_channels: C of the images.
        image_size: H = W of the images; any.
        levels: values a pixel takes.
        classes: number of class labels; 0 for an unconditional network.
        channels: width. Published: 128 for CIFAR-10, 256 for ImageNet.
        blocks: residual blocks on the way in; one more on the way out. Published: 32, for ImageNet-64 64.
        dropout: within the residual blocks.
        input_channels: of the input, where :class:`PixelFeatures` are joined to the image; None: C.
        checkpointing: recompute each block's activations instead of keeping them.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        levels: int,
        classes: int = 0,
        channels: int = 128,
        blocks: int = 32,
        dropout: float = 0.0,
        input_channels: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.channels, self.levels, self.checkpointing = channels, levels, checkpointing
        condition = 4 * channels
        self.embed = nn.Sequential(
            _init(nn.Linear(channels, condition)), nn.SiLU(), _init(nn.Linear(condition, condition)), nn.SiLU()
        )
        self.embed_label = nn.Embedding(classes, condition) if classes else None
        self.input = _conv(input_channels or image_channels, channels)

        def residual(inputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, channels, condition, dropout)

        self.inward = nn.ModuleList(residual(channels) for _ in range(blocks))
        self.middle = nn.ModuleList([residual(channels), Attention(channels), residual(channels)])
        self.outward = nn.ModuleList(residual(2 * channels) for _ in range(blocks + 1))
        self.output = nn.Sequential(group_norm(channels), nn.SiLU(), _conv(channels, image_channels, zero=True))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        condition = self.embed(positional(t, self.channels, self.levels))
        if self.embed_label is not None:
            condition = condition + self.embed_label(label)
        h = self.input(x)
        skips = [h]
        for block in self.inward:
            h = self._run(block, condition, h)
            skips.append(h)
        before, attention, after = self.middle
        h = self._run(before, condition, h)
        h = self._run(attention, h)
        h = self._run(after, condition, h)
        for block in self.outward:
            h = self._run(block, condition, h, skips.pop())
        return self.output(h)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        return recompute.call(block, *inputs, recompute=self.checkpointing)
