import pytest

from fdtrain.config import TrainingConfig
from fdtrain.training.schedule import learning_rate


def rate(step, **settings):
    return learning_rate(step, TrainingConfig(steps=100, lr=1.0, **settings))


def test_warmup_then_constant():
    assert [rate(k, warmup_steps=4) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate(0, warmup_steps=0) == 1.0


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_decay(decay, half):
    assert rate(0, warmup_steps=0, decay=decay) == 1.0
    assert rate(50, warmup_steps=0, decay=decay) == pytest.approx(half)
    if decay != "constant":
        assert 0 < rate(99, warmup_steps=0, decay=decay) < 0.02
