"""Activation checkpointing (Chen et al. 2016): keep a block's inputs, compute what is inside again going back."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def call(block: Callable[..., Tensor], *inputs: Tensor, recompute: bool) -> Tensor:
    """``block(*inputs)``; with ``recompute`` what it would save for the gradient is computed again.

    Dropout is the same the second time, and so are the gradients.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
