"""Layers that networks share."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GroupNorm(nn.GroupNorm):
    """As torch's, whose backward pass on a CPU takes ten times as long for channels-last images as for others."""

    def forward(self, input: Tensor) -> Tensor:
        x, half = input, input.dtype in (torch.bfloat16, torch.float16)
        if _eager_on_cpu(x) and half and _is_channels_last(x) and not x.is_contiguous():
            return _ChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class _ChannelsLast(torch.autograd.Function):
    """``y = gamma (x - mean) rstd + beta`` with the mean and deviation of each image and group."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Tensor:
        B, C, H, W = x.shape
        y, mean, rstd = torch.native_group_norm(x, gamma, beta, B, C, H * W, groups, eps)
        ctx.save_for_backward(x, gamma, mean.float(), rstd.float())
        return y

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """With ``g = gamma dy`` and ``n`` values in a group:
        ``dx = rstd (g - sum(g) / n - (x - mean) rstd^2 sum(g (x - mean)) / n)``."""
        (dy,), (x, gamma, mean, rstd) = grad_outputs, ctx.saved_tensors
        (B, C, H, W), G = x.shape, mean.shape[1]
        D = C // G
        # Few numbers, (B, G, D) or (B, G, 1), in float32.
        mean, rstd, gamma = mean[..., None], rstd[..., None], gamma.view(G, D)
        total = dy.sum((2, 3), dtype=torch.float32).view(B, G, D)
        centred = (dy * x).sum((2, 3), dtype=torch.float32).view(B, G, D) - mean * total
        slope = (centred * gamma).sum(2, keepdim=True) * rstd**3 / -(D * H * W)
        level = (total * gamma).sum(2, keepdim=True) * rstd / -(D * H * W) - slope * mean

        def each(factor: Tensor) -> Tensor:
            return factor.expand(B, G, D).to(x.dtype).reshape(B, C, 1, 1)

        dx = torch.addcmul(torch.addcmul(each(level), x, each(slope)), dy, each(rstd * gamma))
        return dx, (centred * rstd).sum(0).view(C), total.sum(0).view(C), None, None


class Dropout(nn.Dropout):
    """As torch's, whose random numbers take a CPU a tenth of a step: 16 bits for each value do, by four at a time.

    What remains is scaled by the inverse of exactly the share that does: no bias.
    """

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if not self.training or self.p == 0 or not _eager_on_cpu(x):
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        scale = (bits[: x.numel()] >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))
        # In the order of the memory, so that the product is one pass.
        return x * (scale.as_strided(x.size(), x.stride()) if _is_channels_last(x) else scale.view(x.size()))


def _eager_on_cpu(x: Tensor) -> bool:
    """A compiler has its own ways."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def group_norm(channels: int) -> GroupNorm:
    """Groups of at least four channels, at most 32 of them (Song et al. 2021): as many as divide the channels."""
    groups = next(groups for groups in range(min(channels // 4, 32), 0, -1) if channels % groups == 0)
    return GroupNorm(groups, channels, eps=1e-6)


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
Weights = Callable[[Tensor], Any]
"""Sets initial weights, in place."""
GLOROT = nn.init.xavier_uniform_
"""Those of the published codes of DDPM++ and DiT."""


def initialised(layer: Layer, weights: Weights) -> Layer:
    """The layer with these weights and a bias of zero."""
    weights(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(inputs: int, outputs: int, weights: Weights, kernel: int = 3) -> nn.Conv2d:
    return initialised(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), weights)


def dense(inputs: int, outputs: int, weights: Weights) -> nn.Linear:
    return initialised(nn.Linear(inputs, outputs), weights)


class ResidualBlock(nn.Module):
    """Two convolutions with a dense layer of the condition added between; the last one starts at zero.

    ``condition`` makes the dense layer, to so many channels, which is called ``name`` among the parameters; ``weights``
    are of the other convolutions. ``resample`` is ``"up"``, ``"down"`` or None; with ``rescale`` the sum with the
    shortcut is divided by sqrt(2).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        name: str,
        condition: Callable[[int], nn.Linear],
        weights: Weights,
        dropout: float,
        resample: str | None = None,
        rescale: bool = False,
    ):
        super().__init__()
        self.name, self.resample, self.rescale = name, resample, rescale
        self.norm1, self.conv1 = group_norm(inputs), conv(inputs, outputs, weights)
        self.add_module(name, condition(outputs))
        self.norm2, self.conv2 = group_norm(outputs), conv(outputs, outputs, nn.init.zeros_)
        self.dropout = Dropout(dropout)
        self.shortcut = conv(inputs, outputs, weights, 1) if inputs != outputs or resample else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = nnf.silu(self.norm1(x))
        if self.resample == "down":
            h, x = nnf.avg_pool2d(h, 2), nnf.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = nnf.interpolate(h, scale_factor=2.0), nnf.interpolate(x, scale_factor=2.0)
        h = self.conv1(h) + getattr(self, self.name)(condition)[:, :, None, None]
        h = self.shortcut(x) + self.conv2(self.dropout(nnf.silu(self.norm2(h))))
        return h / math.sqrt(2) if self.rescale else h


class Attention(nn.Module):
    """Single-head self-attention over the pixels; the arguments are those of :class:`ResidualBlock`."""

    def __init__(self, channels: int, weights: Weights, rescale: bool = False):
        super().__init__()
        self.rescale = rescale
        self.norm, self.qkv = group_norm(channels), conv(channels, 3 * channels, weights, 1)
        self.out = conv(channels, channels, nn.init.zeros_, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # Contiguous: the fused kernels want the channels of a pixel side by side.
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous().chunk(3, -1)
        h = attend(q[:, None], k[:, None], v[:, None])[:, 0]
        h = x + self.out(h.transpose(1, 2).reshape(x.shape))
        return h / math.sqrt(2) if self.rescale else h


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(D)) v`` of ``(B, heads, S, D)``.

    Torch's fused kernel takes a CPU three to eight times as long in bfloat16 as products do where there are few
    positions (benchmarks/attention.py).
    """
    # A fake tensor stands for one of a GPU (capacity/estimate.py).
    if type(q) is not Tensor or q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[-2] > 256:
        return nnf.scaled_dot_product_attention(q, k, v)
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1, dtype=torch.float32)
    return weights.to(q.dtype) @ v


def call(block: Callable[..., Tensor], *inputs: Tensor, checkpointing: bool) -> Tensor:
    """``block(*inputs)``; with ``checkpointing`` (Chen et al. 2016) what it would save for the gradient is computed
    again, dropout included."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def with_skips(
    down: Iterable[Any], middle: Iterable[Any], up: Iterable[Any], h: Tensor, condition: Tensor, checkpointing: bool
) -> Tensor:
    """A network with skip connections, from stages of blocks ``(h, condition)``: what goes into the first stage of
    ``down`` and what each gives is joined by channel to what a stage of ``up`` gets, the last first."""

    def run(stage: Iterable[Any], *inputs: Tensor) -> Tensor:
        def blocks(condition: Tensor, *inputs: Tensor) -> Tensor:
            h = torch.cat(inputs, 1) if inputs[1:] else inputs[0]
            for block in stage:
                h = block(h, condition)
            return h

        return call(blocks, condition, *inputs, checkpointing=checkpointing)

    skipped = [h]
    for stage in down:
        h = run(stage, h)
        skipped.append(h)
    for stage in middle:
        h = run(stage, h)
    for stage in up:
        h = run(stage, h, skipped.pop())
    return h
