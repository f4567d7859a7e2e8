import math

import pytest
import torch

from fdtrain.evaluation.commands.curve import by_stratum


def test_strata_take_the_variance_between_their_means():
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(5000, 4, dtype=torch.float64, generator=generator) + torch.tensor([0.0, 3.0, 6.0, 9.0])
    found = by_stratum(values, torch.linspace(0, 1, 5))
    assert found["variance_within"] == pytest.approx(4, rel=0.05)
    assert found["variance_iid"] == pytest.approx(4 + 11.25, rel=0.05)
    assert found["error"] == pytest.approx([2 / math.sqrt(5000)] * 4, rel=0.1)
