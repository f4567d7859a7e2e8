import numpy as np
import torch

from fdtrain.randomness import Purpose, normal, stream, torch_seed, uniform

CPU = torch.device("cpu")


def test_streams_are_functions_of_their_key():
    a, b = (normal((4, 8), CPU, 3, Purpose.NOISE, 10, 2) for _ in range(2))
    assert torch.equal(a, b)


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


def test_purposes_keep_their_numbers():
    """They define every run there is; a changed one would change what a resumed run sees."""
    expected = ["SHARDS", "WINDOW", "FLIP", "STRATA", "TIME", "DEQUANTISE"]
    expected += ["NOISE", "DROPOUT", "INIT", "SAMPLE", "EVALUATE", "SPLIT"]
    assert [p.name for p in sorted(Purpose)][: len(expected)] == expected


def test_distributions():
    z = normal((200_000,), CPU, 0, Purpose.NOISE).numpy()
    u = uniform((200_000,), CPU, 0, Purpose.DEQUANTISE).numpy()
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert z.dtype == u.dtype == np.float32
    assert 0 <= u.min() <= u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
