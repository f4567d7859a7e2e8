"""What the convolutional networks share."""

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


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


def pixel_attention(x: Tensor, norm: nn.Module, qkv: nn.Module, out: nn.Module) -> Tensor:
    """Single-head self-attention over the pixels of ``x`` ``(B, C, H, W)``: the branch, to be added to ``x``."""
    # Contiguous: the fused kernels want the channels of a pixel side by side.
    q, k, v = qkv(norm(x)).flatten(2).transpose(1, 2).contiguous().chunk(3, -1)
    h = nnf.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return out(h.transpose(1, 2).reshape(x.shape))
