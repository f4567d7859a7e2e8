"""The step without the trainer, by which a first configuration is chosen."""

from types import SimpleNamespace

import pytest
import torch
from models import DIGITS

from fdtrain.training import bare_loop

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_step_trains_the_network(precision, monkeypatch):
    made, model = [], bare_loop.Model
    monkeypatch.setattr(bare_loop, "Model", lambda *given: made.append(model(*given)) or made[0])
    loop = bare_loop.bare_loop(DIGITS, 4, CPU, precision)
    next(loop)
    before = [parameter.detach().clone() for parameter in made[0].parameters()]
    next(loop)
    assert not all(torch.equal(a, b) for a, b in zip(before, made[0].parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in made[0].parameters())


@pytest.mark.parametrize(
    ("clock", "speed"), [([0, 5, 5, 5.5], 16), ([0, 0.4, 1, 1.2, 2, 2.1, 3, 3.4], 80)], ids=["slow", "fast"]
)
def test_the_speed_is_that_of_the_best_step(clock, speed, monkeypatch):
    """The one that warms up does not count; where it takes long, one more does."""
    times = iter(clock)
    monkeypatch.setattr(bare_loop, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert bare_loop.images_per_second(DIGITS, "fp32", 8, False, CPU) == pytest.approx(speed)
    assert next(times, None) is None
