import pytest
import torch

from fdtrain.diffusion.predictors import PREDICTORS, eps_hat, x0_hat
from fdtrain.diffusion.process import alpha

T = torch.tensor([0.0, 1e-6, 0.3, 0.999999, 1.0], dtype=torch.float64)


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


def test_family():
    f = torch.ones(5, 1, 1, 1, dtype=torch.float64)
    x = torch.randn(5, 1, 1, 1, dtype=torch.float64)
    assert torch.equal(PREDICTORS["plain"](0.03).field(f, x, T), f)
    torch.testing.assert_close(PREDICTORS["alpha"](0.03).field(f, x, T).flatten(), alpha(T))
    bounded = PREDICTORS["bounded"](0.03).field(f, x, T).flatten()
    torch.testing.assert_close(bounded, 1 / torch.sqrt(T**2 + 0.03**2))
    # alpha: eps_hat = t x + t (1 - t^2) f.
    expected = T.view(-1, 1, 1, 1) * x + (T * (1 - T**2)).view(-1, 1, 1, 1) * f
    torch.testing.assert_close(eps_hat(PREDICTORS["alpha"](0.03).field(f, x, T), x, T), expected)
