"""Attention of few positions on a CPU in bfloat16: torch's fused kernel against two products and a softmax.

python benchmarks/attention.py: one thread, milliseconds of a pass forward and of one with its gradient, best of eight.
"""

import time

import torch
import torch.nn.functional as nnf

from fdtrain.networks.layers import attend

SHAPES = ((128, 16, 64), (128, 49, 32), (64, 49, 128), (32, 256, 128), (16, 256, 256))
"""(B, S, D): the digits' network, Fashion-MNIST's small and usual one, CIFAR-10's widths at 16x16."""


def milliseconds(attention, qkv: torch.Tensor) -> tuple[float, float]:
    forward, both = [], []
    for _ in range(8):
        begin = time.perf_counter()
        out = attention(*qkv[:, None].chunk(3, -1))
        forward.append(time.perf_counter() - begin)
        torch.autograd.grad(out.sum(), qkv)
        both.append(time.perf_counter() - begin)
    return 1e3 * min(forward), 1e3 * min(both)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("   B    S    D    fused: forward  with gradient    products: forward  with gradient")
    for B, S, D in SHAPES:
        qkv = torch.randn(B, S, 3 * D).bfloat16().requires_grad_()
        fused, products = milliseconds(nnf.scaled_dot_product_attention, qkv), milliseconds(attend, qkv)
        print(f"{B:4d} {S:4d} {D:4d} {fused[0]:17.1f} {fused[1]:14.1f} {products[0]:20.1f} {products[1]:14.1f}")
