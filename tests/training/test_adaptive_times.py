"""Times that are learned: what is summed, what follows from it, and whole runs."""

import json
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from checkpoints import assert_same

from fdtrain.checkpoint import store
from fdtrain.comparison.evaluate import batch_noise
from fdtrain.config import load_config
from fdtrain.diffusion.adaptive import Moments, Piecewise
from fdtrain.diffusion.clocks import Asinh
from fdtrain.diffusion.objective import Loss
from fdtrain.errors import UserError
from fdtrain.evaluation.load import load_model
from fdtrain.training.adaptive_times import AdaptiveTimes

BINS, DIMS = 8, 64
DEVIATIONS = torch.linspace(0.1, 1.5, BINS, dtype=torch.float64)


def learner(bins=BINS):
    return AdaptiveTimes(Asinh(0.03), bins, 0.1, 4, torch.device("cpu"))


def draws(times, count, seed):
    """Times of a batch, and a loss whose integrand per unit of the base's quantile has known deviations."""
    own = torch.Generator().manual_seed(seed)
    u = torch.rand(count, generator=own, dtype=torch.float64)
    bins = times.density.bin(u)
    g = 5 + DEVIATIONS[bins] * torch.randn(count, generator=own, dtype=torch.float64)
    correction = (DIMS * g / times.density.ratio(u)).float()
    return Loss(correction, correction, correction), u


def part(loss, places):
    return Loss(loss.train[places], loss.nelbo[places], loss.correction[places])


def test_it_learns_the_deviations():
    times = learner()
    for step in range(81):
        times.advance(step)
        times.add(*draws(times, 2048, step), DIMS)
    expected = 0.1 / BINS + 0.9 * DEVIATIONS / DEVIATIONS.sum()
    assert times.density.masses == pytest.approx(expected.tolist(), rel=0.1)
    spread = DEVIATIONS.mean().square() / DEVIATIONS.square().mean()
    assert times.moments.efficiency() == pytest.approx(spread.item(), rel=0.05)


def test_the_density_changes_between_windows_alone():
    times = learner()
    seen = []
    for step in range(9):
        times.advance(step)
        seen.append(times.density)
        times.add(*draws(times, 64, step), DIMS)
        assert times.density is seen[-1]
    assert [a is b for a, b in pairwise(seen)] == [True, True, True, False, True, True, True, False]


def test_sums_do_not_depend_on_passes_and_order():
    loss, u = draws(learner(), 96, 0)
    whole, parts = learner(), learner()
    whole.add(loss, u, DIMS)
    for places in torch.randperm(96, generator=torch.Generator().manual_seed(1)).split(7):
        parts.add(part(loss, places), u[places], DIMS)
    assert whole.gathered() == parts.gathered()
    assert sum(whole.gathered().window[0]) == 96 * 2**26


def test_what_is_not_finite_or_far_too_large_does_no_harm():
    times, (loss, u) = learner(), draws(learner(), 6, 0)
    loss.correction[:3] = torch.tensor([float("nan"), float("inf"), 1e30])
    times.add(loss, u, DIMS)
    assert sum(times.gathered().window[0]) == 4 * 2**26
    times.advance(4)
    assert min(times.density.masses) >= 0.1 / BINS * 0.999


def test_going_on_within_a_window_is_exact():
    whole, stopped = learner(), learner()
    for step in range(6):
        for times in (whole, stopped):
            times.advance(step)
            times.add(*draws(times, 64, step), DIMS)
    saved = store.LearnedTimes(**json.loads(json.dumps(asdict(stopped.gathered()))))
    resumed = learner()
    resumed.load(saved, "state.json")
    assert resumed.density == whole.density
    for step in range(6, 10):
        for times in (whole, resumed):
            times.advance(step)
            times.add(*draws(times, 64, step), DIMS)
    assert resumed.density == whole.density != stopped.density
    assert resumed.gathered() == whole.gathered()


@pytest.mark.parametrize("damage", [[[1e999]] * 3, [["a"]] * 3, 5])
def test_damaged_moments_are_refused(damage, tmp_path):
    state = store.State(1, 1, 1, 0, [0.0], 0, 0, store.Counters(0.0, {}, (0.0, 0.0)), {}, None)
    content = asdict(state) | {"times": {"moments": damage, "window": [[0]] * 3}}
    (tmp_path / store.STATE_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be read \(times\.moments"):
        store.read_state(tmp_path)


def test_another_number_of_bins_is_refused():
    with pytest.raises(UserError, match=r"state\.json has a density of times learned in 8 bins, not 16"):
        learner(16).load(learner().gathered(), "state.json")


ADAPTIVE = ["diffusion.time_density=adaptive", "diffusion.adaptive_bins=4", "diffusion.adaptive_update_every=2"]
ADAPTIVE += ["training.zero_stage=0", "training.lr=1e-2", "checkpoint.every=3"]


def test_a_run_is_the_same_on_any_number_of_processes_and_after_a_resume(launch):
    launch(*ADAPTIVE, "name=whole", processes=0)
    launch(*ADAPTIVE, "training.steps=3", "name=parts", processes=0)
    launch(*ADAPTIVE, "name=parts", processes=0, resume=True)
    assert_same(launch.checkpoint(6, "whole"), launch.checkpoint(6, "parts"))
    learned, parts = (store.read_state(launch.checkpoint(6, name)).times for name in ("whole", "parts"))
    assert learned is not None
    assert learned == parts
    assert "train/base_efficiency" in launch.log("whole")[-1]
    assert len(set(learned.moments[2])) == 4
    # A comparison measures batches by the density that the run has learned.
    config, model = load_config(launch.run_folder("whole") / "config.yaml"), load_model(launch.run_folder("whole"))
    drawn = batch_noise(config, model, launch.checkpoint(6, "whole"), torch.device("cpu")).density
    assert isinstance(drawn, Piecewise)
    assert drawn.masses == Moments(*learned.moments).masses(config.diffusion.adaptive_floor)

    launch(*ADAPTIVE, "name=shared", "training.micro_batch=8", processes=2)
    assert launch.losses("shared") == pytest.approx(launch.losses("whole"), rel=1e-5)
    shared = store.read_state(launch.checkpoint(6, "shared")).times
    assert shared is not None
    for found, expected in zip(shared.moments, learned.moments):
        assert found == pytest.approx(expected, rel=1e-3)

    message = launch(*ADAPTIVE, "diffusion.adaptive_bins=8", "name=whole", processes=0, resume=True, rc=2).stderr
    assert "belongs to a run with other settings: diffusion.adaptive_bins 4 against 8" in message
