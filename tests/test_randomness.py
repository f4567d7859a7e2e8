import numpy as np
import pytest
import torch

from fdtrain.errors import UserError
from fdtrain.randomness import Purpose, check_seed, normal, stream, streams, torch_seed

CPU = torch.device("cpu")


def test_streams_in_turn_are_those_made_one_by_one():
    """Whatever of the one before has been drawn, half of a 64-bit word included."""
    counters = [(5, 0), (5, 1), (7,), (0, 2**40, 3)]
    for own, each in zip(streams(3, Purpose.NOISE, counters), counters, strict=True):
        one = stream(3, Purpose.NOISE, *each)
        assert (own.random(3, dtype=np.float32) == one.random(3, dtype=np.float32)).all()
        assert (own.standard_normal(5) == one.standard_normal(5)).all()
    together = normal((2, 2), CPU, 3, Purpose.NOISE, counters)
    alone = [stream(3, Purpose.NOISE, *each).standard_normal((2, 2), dtype=np.float32) for each in counters]
    assert (together.numpy() == np.stack(alone)).all()


def test_streams_of_other_keys_differ():
    keys = [
        (seed, purpose, step, lane)
        for seed in (0, 1)
        for purpose in (Purpose.NOISE, Purpose.TIME)
        for step in (0, 1, 2)
        for lane in (0, 1, 2)
    ]
    draws = {float(stream(*key).random()) for key in keys}
    assert len(draws) == len(keys)
    assert len({torch_seed(*key) for key in keys}) == len(keys)


def test_large_seeds_are_seeds_of_their_own():
    """Two to the 53 is where the numbers of a float64 begin to have gaps. A seed that others call by is as before."""
    seeds = [2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]
    assert len({float(stream(seed, Purpose.SAMPLE, 1).random()) for seed in seeds}) == 4
    assert stream(2**63, Purpose.SAMPLE, 1).random() != stream(2**63 + 1, Purpose.SAMPLE, 1).random()
    own = np.random.Generator(np.random.Philox(key=[2**63 - 1, 9], counter=[0, 1, 0, 0]))
    assert stream(2**63 - 1, Purpose.SAMPLE, 1).random() == own.random()


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_what_is_no_seed(seed):
    with pytest.raises(UserError, match=r"--seed must be from 0 to 9223372036854775807\."):
        check_seed(seed, "--seed")
    check_seed(2**63 - 3, "--seed", 3)
    with pytest.raises(UserError, match=r"--seed must be from 0 to 9223372036854775805\."):
        check_seed(2**63 - 2, "--seed", 3)


def test_purposes_keep_their_numbers():
    """They define every run there is; a changed one would change what a resumed run sees."""
    expected = ["SHARDS", "WINDOW", "FLIP", "STRATA", "TIME", "DEQUANTISE"]
    expected += ["NOISE", "DROPOUT", "INIT", "SAMPLE", "EVALUATE", "SPLIT"]
    assert [p.name for p in sorted(Purpose)][: len(expected)] == expected
