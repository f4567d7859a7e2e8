import itertools
import math

import numpy as np
import pytest
import torch

from fdtrain.diffusion.clocks import CLOCKS
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.solvers import GRID, time_grid
from fdtrain.diffusion.solvers.grids import two_ended

INTERVALS = [CLOSED, Interval(0.001, 0.99), Interval(1e-5), Interval(0, 0.99998)]


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("dims", [1, 64, 3072, 10**6])
def test_it_falls_from_one_end_to_the_other(interval, levels, dims):
    """Also where ``a`` is above ``1 / b``: one step, few levels, an image of one pixel."""
    for steps in (1, 2, 3, 10, 100, 3000):
        if steps == 1 and interval.t_min > 0:
            continue
        times = time_grid(GRID, steps, levels, dims, interval)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (interval.t_max, 0.0)
        assert interval.t_min == 0 or times[-2] == interval.t_min
        assert all(a > b for a, b in itertools.pairwise(times))


def test_it_is_even_in_log_snr_between_its_ends():
    """From 10 a to 1 / (10 b) in ``t / alpha``, to one percent."""
    times = np.array(time_grid(f"{GRID}:1e-4,1e-4", 60))
    log_ratio = np.log(times[1:-1] / np.sqrt(1 - times[1:-1] ** 2))
    steps = -np.diff(log_ratio)[np.abs(log_ratio[1:]) < math.log(1e3)]
    assert len(steps) > 20
    assert steps == pytest.approx(steps[0], rel=0.01)


def test_its_ends_follow_steps_levels_and_dimensions():
    by_hand = time_grid(f"{GRID}:{15 / 2560},{1 / (0.4 * 3072**0.5)}", 10)
    assert time_grid(GRID, 10, 256, 3072) == pytest.approx(by_hand, rel=1e-12)
    # The last step of a truncated interval, the prediction of the image, is not one of the grid's.
    assert two_ended(10, 256, 3072).a == 2 * two_ended(20, 256, 3072).a
    inner = time_grid(GRID, 11, 256, 3072, Interval(0.001))[:-1]
    even = two_ended(10, 256, 3072).cdf(np.array(inner))
    assert np.diff(even) == pytest.approx([even[1] - even[0]] * 10, rel=1e-9)


@pytest.mark.parametrize("name", CLOCKS)
def test_grids_of_published_samplers_are_even_in_their_clock(name):
    clock = CLOCKS[name]
    times = time_grid(name, 10, interval=clock.interval)
    assert (times[0], times[-1], len(times)) == (clock.interval.t_max, 0.0, 11)
    own = clock.cdf(torch.tensor(times if clock.interval.t_min == 0 else times[:-1], dtype=torch.float64))
    steps = (own[:-1] - own[1:]).tolist()
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)


@pytest.mark.parametrize("name", ["linear_vp", "vdm", "karras"])
def test_a_grid_that_does_not_reach_the_ends_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is infinite at t = [01], where this model begins or ends"):
        time_grid(name, 10)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("sine", "there is no grid 'sine'; take two_ended, which serves every solver, or karras, linear_vp, "),
        ("karras:5", "'karras:5': only two_ended takes parameters"),
        ("two_ended:0.1", "only two_ended takes parameters, as two_ended:0.005,0.07"),
        ("two_ended:0.1,x", "only two_ended takes parameters"),
        ("two_ended:0.1,inf", "only two_ended takes parameters"),
        ("two_ended:-1,0.1", "only two_ended takes parameters"),
        ([1.0, 0.5], "fall strictly"),
        ([1.0, float("nan"), 0.0], "fall strictly"),
        ([1.0, 0.5, 0.0], "3 times are 2 steps, not 3"),
    ],
)
def test_a_wrong_grid_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        time_grid(grid, 3)


def test_times_of_ones_own():
    assert time_grid([1, 0.5, 0], 2) == [1.0, 0.5, 0.0]
