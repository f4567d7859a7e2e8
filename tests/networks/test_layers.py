"""Layers of our own against torch's."""

import pytest
import torch
from torch import nn

from fdtrain.networks.layers import Dropout, group_norm


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (128, 32), (144, 24), (256, 32)])
def test_groups_divide_the_channels(channels, groups):
    """24 channels, doubled twice and joined by a skip, are 144."""
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(("channels", "size"), [(32, 8), (128, 16), (256, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_of_channels_last_images(channels, size, dtype):
    """Value and gradients are those of float64 as closely as torch's own in the default layout; that of the weight as
    closely as products in the data's own precision allow."""
    torch.manual_seed(0)
    x = (2 * torch.randn(3, channels, size, size) + 1).to(dtype)
    dy = torch.randn_like(x)
    ours = group_norm(channels)
    theirs = nn.GroupNorm(ours.num_groups, channels, eps=ours.eps)
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())

    def results(norm, x, dy):
        x = x.detach().requires_grad_()
        y = norm(x)
        return [y.detach(), *torch.autograd.grad(y, (x, norm.weight, norm.bias), dy)]

    last = {"memory_format": torch.channels_last}
    found = results(ours, x.contiguous(**last), dy.contiguous(**last))
    assert found[1].is_contiguous(**last)
    plain = results(theirs, x, dy)
    exact = results(theirs.double(), x.double(), dy.double())
    # The products of the weight's gradient are rounded before the mean is subtracted; torch 2.11 has them in float32.
    for mine, other, truth, rounding in zip(found, plain, exact, (2**-9, 2**-9, 2**-8, 2**-9), strict=True):
        assert mine.dtype == other.dtype
        error, usual = ((value.double() - truth).norm() / truth.norm() for value in (mine, other))
        assert error < 2 * usual + rounding


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout(layout):
    torch.manual_seed(0)
    drop = Dropout(0.1)
    x = torch.ones(16, 64, 32, 32).contiguous(memory_format=layout).requires_grad_()
    y = drop(x)
    assert y.is_contiguous(memory_format=layout)
    share = 1 - round(0.1 * 2**16) / 2**16
    assert y.unique().tolist() == [0.0, pytest.approx(1 / share)]
    count = x.numel()
    kept = (y > 0).float()
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(kept.mean().item() - share) < 4 * deviation
    # Four values share a random number; none may know of another.
    flat = kept.permute(0, 2, 3, 1).flatten() if layout == torch.channels_last else kept.flatten()
    for lag in (1, 2, 3, 4):
        both = (flat[lag:] * flat[:-lag]).mean().item()
        assert abs(both - share**2) < 4 * (share**2 * (1 - share**2) / count) ** 0.5
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    torch.manual_seed(0)
    assert torch.equal(drop(x), y)
    assert torch.equal(drop.eval()(x), x)


def test_dropout_of_a_size_that_four_does_not_divide_and_of_almost_all():
    y = Dropout(0.5)(torch.ones(3, 7))
    assert y.shape == (3, 7)
    assert set(y.unique().tolist()) <= {0.0, 2.0}
    assert torch.isfinite(Dropout(1 - 1e-9)(torch.ones(1000))).all()


def test_the_compiler_gets_one_whole_graph():
    """Nothing of ours stops it, on images in the layout that a CPU trains on."""
    block = nn.Sequential(nn.Conv2d(8, 32, 3), group_norm(32), Dropout(0.5))
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last))
    assert y.dtype == torch.bfloat16
