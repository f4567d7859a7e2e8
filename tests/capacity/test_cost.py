from dataclasses import replace

import pytest
import torch
from models import DIGITS

from fdtrain.capacity.cost import activations, flops
from fdtrain.networks.model import Model

OPTIONS = {"channels": 8, "blocks": 1, "fourier_features": 2}
SPEC = replace(DIGITS, network="vdm", network_options=OPTIONS, predictor="bounded", scale=0.1)


def test_flops_of_a_known_network():
    """vdm of one block each way, by hand: two operations per weight of a product, and the attention's two products."""
    n, pixels, features = 8, 64, 5
    embedding = n * 4 * n + (4 * n) ** 2
    convolutions = 9 * (features * n + 3 * 2 * n * n + 2 * (2 * n * n + n * n) + n)
    others = 2 * 2 * n * n + 4 * n * n + 2 * pixels * n  # shortcuts, attention's layers, attention
    conditions = 5 * 4 * n * n
    forward = 2 * (embedding + conditions + pixels * (convolutions + others))
    counted = flops(SPEC)
    assert counted.forward == forward
    # Backward is twice that, but nothing is asked of the first layer about the images, nor of the time's.
    assert counted.backward == 2 * forward - 2 * pixels * 9 * features * n - 2 * n * 4 * n
    assert counted.training(checkpointing=True) - counted.training() == forward


def test_the_paper_s_flops_of_dit():
    """DiT-XL/2 on 32x32x4 latents takes 118.6 G multiplications forward (table 4); pixels have three channels."""
    spec = replace(SPEC, network="dit", network_options={"size": "XL"}, channels=3, size=32, levels=256)
    assert flops(spec).forward / 2 == pytest.approx(118.6e9, rel=2e-3)


def saved_for_real(spec, images):
    model, sizes = Model(spec), {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def pack(x):
        if x.untyped_storage()._cdata not in weights:
            sizes[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(torch.randn(images, *spec.shape), torch.rand(images, dtype=torch.float64))
    return sum(storage.nbytes() for storage in sizes.values())


def test_activations_are_those_that_autograd_saves():
    assert activations(SPEC, "fp32").bytes(3) == pytest.approx(saved_for_real(SPEC, 3), rel=0.01)


@pytest.mark.parametrize("network", [{}, {"network": "ddpmpp", "network_options": {"channels": 16}}])
def test_precision_and_checkpointing_keep_less(network):
    spec = replace(SPEC, size=16, **network)
    full, half = activations(spec, "fp32"), activations(spec, "bf16")
    assert 0.5 * full.per_image < half.per_image < full.per_image
    assert activations(spec, "fp32", checkpointing=True).per_image < 0.5 * full.per_image
    assert full.fixed < half.fixed <= 2 * sum(p.numel() for p in Model(spec).parameters())
