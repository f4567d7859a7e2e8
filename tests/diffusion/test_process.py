"""The process and the predictions of it, at both ends exactly."""

import math

import pytest
import torch

from fdtrain.diffusion.predictors import PREDICTORS, eps_hat, x0_hat
from fdtrain.diffusion.process import alpha, perturb, velocity

T = torch.tensor([0.0, 1e-6, 0.3, 0.999999, 1.0], dtype=torch.float64)


def test_alpha_keeps_its_digits_near_one():
    assert alpha(T[[0, -1]]).tolist() == [1.0, 0.0]
    torch.testing.assert_close(alpha(T) ** 2 + T**2, torch.ones_like(T), rtol=0, atol=1e-15)
    # 1 - t = 1e-12: sqrt(2e-12 - 1e-24), where 1 - t * t would have lost four digits.
    gap = 1 - torch.tensor([1 - 1e-12], dtype=torch.float64)
    assert alpha(1 - gap).item() == pytest.approx(math.sqrt(gap.item() * (2 - gap.item())), rel=1e-15)


def test_image_at_zero_and_noise_at_one():
    x0, eps = torch.randn(2, 5, 1, 2, 2)
    x, v = perturb(x0, eps, T), velocity(x0, eps, T)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[-1], eps[-1])
    assert torch.equal(v[0], eps[0])
    assert torch.equal(v[-1], -x0[-1])


def test_predictions_at_the_ends():
    x, F = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    assert torch.equal(x0_hat(F, x, T)[0], x[0])
    assert torch.equal(x0_hat(F, x, T)[-1], -F[-1])
    assert torch.equal(eps_hat(F, x, T)[0], torch.zeros_like(x[0]))
    assert torch.equal(eps_hat(F, x, T)[-1], x[-1])


@pytest.mark.parametrize("kind", ["plain", "bounded", "alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_field_is_finite_and_float32_on_the_closed_interval(kind, dtype):
    f = torch.randn(5, 1, 2, 2, dtype=dtype)
    F = PREDICTORS[kind](1 / 256).field(f, f.float(), T)
    assert all(PREDICTORS[kind](1 / 256).finite(t) for t in (0.0, 1.0))
    assert F.dtype == torch.float32
    assert torch.isfinite(F).all()
