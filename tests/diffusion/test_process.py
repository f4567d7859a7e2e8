import math

import pytest
import torch

from fdtrain.diffusion.process import alpha, perturb, velocity

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_alpha_is_exact_at_both_ends():
    assert alpha(ENDS).tolist() == [1.0, 0.0]


def test_alpha_keeps_its_digits_near_one():
    # 1 - t = 1e-12: sqrt(2e-12 - 1e-24), where 1 - t * t would have lost four digits.
    gap = 1 - torch.tensor([1 - 1e-12], dtype=torch.float64)
    assert alpha(1 - gap).item() == pytest.approx(math.sqrt(gap.item() * (2 - gap.item())), rel=1e-15)


def test_process_preserves_variance():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(alpha(t) ** 2 + t**2, torch.ones_like(t), rtol=0, atol=1e-15)


def test_image_at_zero_and_noise_at_one():
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x = perturb(x0, eps, ENDS)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[1], eps[1])
    v = velocity(x0, eps, ENDS)
    assert torch.equal(v[0], eps[0])
    assert torch.equal(v[1], -x0[1])
