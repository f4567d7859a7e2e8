"""What every network must do."""

import pytest
import torch
import torch.nn.functional as nnf

from fdtrain.networks.dit import SIZES
from fdtrain.networks.layers import attend
from fdtrain.networks.model import NETWORKS

SMALL = {
    "ddpmpp": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)},
    "vdm": {"channels": 8, "blocks": 2},
    "dit": {"size": "tiny"},
}
ENDS = torch.tensor([0.0, 1.0])


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A size that the paper does not have."""
    monkeypatch.setitem(SIZES, "tiny", (2, 32, 4))


def build(name, classes=0, **options):
    torch.manual_seed(0)
    return NETWORKS[name](1, 8, 17, classes=classes, **SMALL[name], **options)


def awaken(network):
    """Away from the zeros that it starts from."""
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network


def gradients(network, label=None):
    network.zero_grad()
    torch.manual_seed(1)  # dropout's
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    network(x, ENDS, label).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_is_zero(name):
    out = build(name)(torch.randn(2, 1, 8, 8), ENDS)
    assert torch.equal(out, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("name", "size", "part"), [("ddpmpp", 9, "9 pixels cannot be halved 1 times"), ("dit", 9, "into patches of 2")]
)
def test_images_that_cannot_be_divided_are_refused(name, size, part):
    with pytest.raises(ValueError, match=part):
        NETWORKS[name](1, size, 17, **SMALL[name])


VARIANTS = [
    *[(name, options) for name in NETWORKS for options in ({}, {"classes": 5})],
    ("ddpmpp", {"dropout": 0.5}),
    ("vdm", {"dropout": 0.5}),
    ("ddpmpp", {"attention": ()}),
    ("ddpmpp", {"time_embedding": "fourier"}),
    ("dit", {"patch": 4}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_learns(name, options, monkeypatch):
    monkeypatch.setitem(SMALL, name, SMALL[name] | options)
    classes = SMALL[name].pop("classes", 0)
    label = torch.tensor([0, 4]) if classes else None
    assert all(g.abs().sum() > 0 for g in gradients(awaken(build(name, classes)), label))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_changes_no_gradient(name, half):
    dropout = {} if name == "dit" else {"dropout": 0.3}
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        kept = gradients(awaken(build(name, **dropout)))
        recomputed = gradients(awaken(build(name, checkpointing=True, **dropout)))
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed))


@pytest.mark.parametrize("positions", [16, 300])
def test_attention_in_bfloat16_is_that_of_float64(positions):
    """By products where there are few positions, and fused where there are many: as near as bfloat16 is, gradients
    too."""
    torch.manual_seed(0)
    exact = torch.randn(3, 2, 2, positions, 8, dtype=torch.float64).bfloat16().double().requires_grad_()
    half = exact.detach().bfloat16().requires_grad_()
    expected, found = nnf.scaled_dot_product_attention(*exact), attend(*half)
    assert found.dtype == torch.bfloat16
    expected.square().sum().backward()
    found.float().square().sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=0.01, rtol=0.02)
    torch.testing.assert_close(half.grad.double(), exact.grad, atol=0.03, rtol=0.05)
