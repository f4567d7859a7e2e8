import pytest
import torch

from fdtrain.data.lanes import own_lanes
from fdtrain.diffusion.clocks import Asinh
from fdtrain.training.batch_noise import BatchNoise

BATCH, LANES = 48, 8


def draws(kind="stratified", seed=0):
    return BatchNoise(seed, BATCH, BATCH // LANES, kind, Asinh(0.1), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["stratified", "lattice", "iid"])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_draws_do_not_depend_on_who_makes_them(kind, world_size):
    whole, parts = draws(kind), [own_lanes(r, world_size, LANES) for r in range(world_size)]
    for step in (0, 7):
        for method, arguments in (
            (whole.quantiles, ()),
            (whole.noise, ((1, 2, 2),)),
            (whole.dequantisation, ((1, 2, 2),)),
            (whole.dropped_labels, (0.3,)),
        ):
            together = torch.cat([method(step, lanes, *arguments) for lanes in parts])
            assert torch.equal(together, method(step, range(LANES), *arguments))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_strata_are_laid_over_the_global_batch(world_size):
    u = torch.cat([draws().quantiles(3, own_lanes(r, world_size, LANES)) for r in range(world_size)])
    assert u.dtype == torch.float64
    assert sorted((u * BATCH).long().tolist()) == list(range(BATCH))


def test_strata_are_assigned_at_random():
    """The same image slot must not always have the same time."""
    first = [int(draws().quantiles(step, [0])[0] * BATCH) for step in range(200)]
    assert len(set(first)) > 40


def test_steps_seeds_and_lanes_differ():
    noises = [draws(seed=s).noise(k, [lane], (2,)) for s in (0, 1) for k in (0, 1) for lane in (0, 1)]
    assert len({tuple(n.flatten().tolist()) for n in noises}) == 8


def test_labels_are_dropped_at_their_share():
    dropped = torch.cat([draws().dropped_labels(step, range(LANES), 0.1) for step in range(200)])
    assert dropped.dtype == torch.bool
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not draws().dropped_labels(0, range(LANES), 0.0).any()
