"""DiT: the transformer of Peebles & Xie 2023 ("Scalable Diffusion Models with Transformers"), on pixels.

Patches are tokens; time and label enter every block as a shift, a scale and a gate of its two branches, which
start at zero (adaLN-Zero), and so does the output: an untrained network is the standard normal, exactly.
Against the paper: images in place of an autoencoder's latents, no learned variance.
"""

import math
from functools import partial

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fdtrain.networks.embeddings import positional
from fdtrain.networks.layers import GLOROT, attend, call, dense

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
"""Blocks, width, attention heads (the paper's table 1)."""
TIME_CHANNELS = 256


def position_embedding(side: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column of ``side x side`` tokens, ``(side^2, width)``."""
    quarter = width // 4
    frequency = torch.exp(torch.arange(quarter) * (-math.log(1e4) / quarter))
    angle = torch.arange(side)[:, None] * frequency
    waves = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1)


SMALL, ZERO = partial(nn.init.normal_, std=0.02), partial(nn.init.normal_, std=0.0)
"""Initial weights of the embeddings, and of what starts at zero."""


class Modulation(nn.Module):
    """``count`` vectors ``(B, 1, width)`` out of the condition, zero at the start."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count, self.dense = count, dense(width, count * width, ZERO)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.dense(nnf.silu(condition))[:, None].chunk(self.count, -1)


class Block(nn.Module):
    """Self-attention and a perceptron, each normalised, modulated and gated by the condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = Modulation(width, 6)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = dense(width, 3 * width, GLOROT), dense(width, width, GLOROT)
        wide, narrow = dense(width, 4 * width, GLOROT), dense(4 * width, width, GLOROT)
        self.perceptron = nn.Sequential(wide, nn.GELU(approximate="tanh"), narrow)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        h = h + gate1 * self._attend(self.norm(h) * (1 + scale1) + shift1)
        return h + gate2 * self.perceptron(self.norm(h) * (1 + scale2) + shift2)

    def _attend(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class DiT(nn.Module):
    """The transformer.

    Args: besides those of every network (:data:`fdtrain.networks.model.ARGUMENTS`):
        size: one of :data:`SIZES`.
        patch: pixels of a token's side.

    Raises:
        ValueError: the images cannot be cut into patches.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        levels: int,
        classes: int = 0,
        size: str = "S",
        patch: int = 2,
        input_channels: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"images of {image_size} pixels cannot be cut into patches of {patch}")
        blocks, width, heads = SIZES[size]
        self.patch, self.levels, self.checkpointing = patch, levels, checkpointing
        self.input = dense((input_channels or image_channels) * patch**2, width, GLOROT)
        # Not a weight: made again wherever the model is built.
        self.register_buffer("position", position_embedding(image_size // patch, width), persistent=False)
        self.embed = nn.Sequential(dense(TIME_CHANNELS, width, SMALL), nn.SiLU(), dense(width, width, SMALL))
        self.embed_label = nn.Embedding(classes, width) if classes else None
        if self.embed_label is not None:
            SMALL(self.embed_label.weight)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(width, 2)
        self.output = dense(width, image_channels * patch**2, ZERO)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        condition = self.embed(positional(t, TIME_CHANNELS, self.levels))
        if self.embed_label is not None:
            condition = condition + self.embed_label(label)
        # (B, C, H, W) to tokens (B, N, C patch^2) and back.
        h = nnf.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        h = self.input(h) + self.position
        for block in self.blocks:
            h = call(block, h, condition, checkpointing=self.checkpointing)
        shift, scale = self.modulation(condition)
        h = self.output(self.norm(h) * (1 + scale) + shift)
        side = x.shape[-1] // self.patch
        return nnf.pixel_shuffle(h.transpose(1, 2).unflatten(2, (side, side)), self.patch)
