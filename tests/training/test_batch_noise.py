"""What is random about a batch is a function of (seed, step, lane), whoever draws it and where."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import DIGITS

from fdtrain.data.lanes import own_lanes
from fdtrain.diffusion.clocks import Asinh
from fdtrain.randomness import Purpose, stream
from fdtrain.training.batch_noise import BatchNoise, PassInputs

BATCH, LANES = 48, 8
EACH = BATCH // LANES
SHAPE = (3, 4, 4)
IMAGES = torch.randint(0, 17, (BATCH, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(BATCH) % 3


def draws(kind="stratified", seed=0, share=0.0):
    return BatchNoise(seed, BATCH, EACH, kind, Asinh(0.1), DIGITS.bound, label_dropout=share, null_label=3)


def batch(noise, step, lanes) -> PassInputs:
    images = slice(lanes.start * EACH, lanes.stop * EACH)
    return noise.batch(step, lanes, IMAGES[images], LABELS[images])


@pytest.mark.parametrize("kind", ["stratified", "lattice", "iid"])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_draws_do_not_depend_on_who_makes_them(kind, world_size):
    noise = draws(kind, share=0.3)
    for step in (0, 7):
        whole, parts = batch(noise, step, range(LANES)), [own_lanes(r, world_size, LANES) for r in range(world_size)]
        own = [batch(noise, step, lanes) for lanes in parts]
        for name in ("x0", "eps", "label"):
            assert torch.equal(torch.cat([getattr(part, name) for part in own]), getattr(whole, name))
        for name in ("t", "pdf"):
            # The last numbers of an array are computed one by one, which may round otherwise.
            joined = torch.cat([getattr(part, name) for part in own])
            torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-14, atol=0)


def test_draws_are_those_of_each_lanes_streams():
    """As every run has had them on a CPU."""
    noise, step, found = draws(share=0.3), 5, batch(draws(share=0.3), 5, range(LANES))
    for lane in range(LANES):
        mine = slice(lane * EACH, (lane + 1) * EACH)
        eps = stream(0, Purpose.NOISE, step, lane).standard_normal((EACH, *SHAPE), dtype=np.float32)
        u = torch.from_numpy(stream(0, Purpose.DEQUANTISE, step, lane).random((EACH, *SHAPE), dtype=np.float32))
        dropped = stream(0, Purpose.LABEL, step, lane).random(EACH) < 0.3
        assert (found.eps[mine].numpy() == eps).all()
        assert torch.equal(found.x0[mine], (IMAGES[mine].float() + u) * (2 / 17) - 1)
        assert (found.label[mine].numpy() == np.where(dropped, 3, LABELS[mine])).all()
        times = (noise.quantiles(step, range(lane, lane + 1)) * BATCH).numpy() % 1
        np.testing.assert_allclose(times, stream(0, Purpose.TIME, step, lane).random(EACH), atol=1e-12)
    assert torch.equal(found.t, noise.density.quantile(noise.quantiles(step, range(LANES))))
    assert torch.equal(found.pdf, noise.density.pdf(found.t))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_strata_are_laid_over_the_global_batch(world_size):
    u = torch.cat([draws().quantiles(3, own_lanes(r, world_size, LANES)) for r in range(world_size)])
    assert u.dtype == torch.float64
    assert sorted((u * BATCH).long().tolist()) == list(range(BATCH))


def test_strata_are_assigned_at_random():
    """The same image slot must not always have the same time."""
    first = [int(draws().quantiles(step, range(1))[0] * BATCH) for step in range(200)]
    assert len(set(first)) > 40


def test_steps_and_seeds_differ():
    noises = [batch(draws(seed=s), k, range(LANES)).eps for s in (0, 1) for k in (0, 1)]
    assert len({value for noise in noises for value in noise.flatten().tolist()}) > 0.99 * 4 * noises[0].numel()
    assert not torch.equal(noises[0], batch(draws().redrawn(1), 0, range(LANES)).eps)


def test_labels_are_dropped_at_their_share():
    noise = replace(draws(share=0.1), lane_images=6)
    dropped = torch.cat([noise.dropped_labels(step, range(LANES)) for step in range(200)])
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(batch(draws(), 0, range(LANES)).label, LABELS)
