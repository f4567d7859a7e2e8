"""What the convolutional networks share."""

import torch.nn.functional as nnf
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least four channels, at most 32 of them (Song et al. 2021)."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def pixel_attention(x: Tensor, norm: nn.Module, qkv: nn.Module, out: nn.Module) -> Tensor:
    """Single-head self-attention over the pixels of ``x`` ``(B, C, H, W)``: the branch, to be added to ``x``."""
    # Contiguous: the fused kernels want the channels of a pixel side by side.
    q, k, v = qkv(norm(x)).flatten(2).transpose(1, 2).contiguous().chunk(3, -1)
    h = nnf.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return out(h.transpose(1, 2).reshape(x.shape))
