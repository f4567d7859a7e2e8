"""The cost of training a network, counted from its operations without computing or allocating anything."""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fdtrain.networks.model import Model, ModelSpec

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Flops:
    """Operations for one image, in matrix products and convolutions. A multiply-add counts as two."""

    forward: int
    backward: int

    def training(self, checkpointing: bool = False) -> int:
        """Operations of a training step. Checkpointing repeats the forward pass, except for the ends of the network."""
        return self.forward * (2 if checkpointing else 1) + self.backward


@dataclass(frozen=True)
class Activations:
    """Bytes saved for the backward pass: those per image, and the half-precision copies of the weights."""

    per_image: int
    fixed: int

    def bytes(self, images: int) -> int:
        """The bytes of one pass over this number of images."""
        return self.per_image * images + self.fixed


def flops(spec: ModelSpec) -> Flops:
    """Counted by ``torch.utils.flop_counter`` on the meta device."""
    with torch.device("meta"):
        model = Model(spec)
        with FlopCounterMode(display=False) as counter:
            out = model(*_inputs(spec, 1))
            forward = counter.get_total_flops()
            out.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward)


def activations(spec: ModelSpec, precision: str = "bf16", checkpointing: bool = False) -> Activations:
    """What eager autograd saves, with the casts that CUDA's autocast makes.

    ``torch.compile`` saves less; the allocator's gaps and the workspaces of convolutions come on top.
    """
    one, two = (_saved_bytes(spec, images, precision, checkpointing) for images in (1, 2))
    return Activations(per_image=two - one, fixed=2 * one - two)


def _saved_bytes(spec: ModelSpec, images: int, precision: str, checkpointing: bool) -> int:
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        # The reference keeps any other storage from getting the same address.
        saved[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    dtype = AUTOCAST.get(precision, torch.bfloat16)
    with FakeTensorMode():
        model = Model(spec, checkpointing)
        inputs = _inputs(spec, images)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
            torch.autocast("cpu", dtype, enabled=precision in AUTOCAST),
            _FullPrecisionNorms(),
        ):
            model(*inputs)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


class _FullPrecisionNorms(TorchFunctionMode):
    """Normalise in float32, which autocast does on CUDA and not on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (nnf.group_norm, nnf.layer_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _inputs(spec: ModelSpec, images: int) -> tuple[Tensor, Tensor, Tensor | None]:
    label = torch.zeros(images, dtype=torch.int64) if spec.classes else None
    return torch.empty(images, *spec.shape), torch.empty(images, dtype=torch.float64), label
