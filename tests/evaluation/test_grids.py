from itertools import pairwise

import pytest

from fdtrain.diffusion.solvers import GRID, time_grid
from fdtrain.errors import UserError
from fdtrain.evaluation import grid
from fdtrain.evaluation.samples import GRIDS, load_optimised, read_grid, save_optimised


def test_grids_by_name_as_a_list_and_from_a_file(tmp_path):
    assert read_grid("two_ended:0.01,0.1") == "two_ended:0.01,0.1"
    assert read_grid("optimised") == "optimised"
    assert read_grid("1,0.5,0") == (1.0, 0.5, 0.0)
    (tmp_path / "a.json").write_text("[1, 0.5,\n0.1, 0]")
    (tmp_path / "a.txt").write_text("1\n0.5\n0.1\n0\n")
    for name in ("a.json", "a.txt"):
        assert read_grid(str(tmp_path / name)) == (1.0, 0.5, 0.1, 0.0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("log", "--grid: there is no grid 'log'; take two_ended"),
        ("two_ended:-1,2", "only two_ended takes parameters"),
        ("1,0.5,x", "could not convert string to float: .x."),
        ("1,0.5,0.7,0", "must fall strictly"),
        ("/nowhere/times", "cannot read /nowhere/times"),
    ],
)
def test_wrong_grids(text, part):
    with pytest.raises(UserError, match=part):
        read_grid(text)


def test_optimised_grids_are_of_weights_solver_and_steps(tmp_path):
    save_optimised(tmp_path, "abc", "ode", 2, (1.0, 0.4, 0.0))
    save_optimised(tmp_path, "abc", "ode", 3, (1.0, 0.4, 0.1, 0.0))
    assert load_optimised(tmp_path, "abc", "ode", 2) == (1.0, 0.4, 0.0)
    for weights, solver, steps in (("abd", "ode", 2), ("abc", "sde", 2), ("abc", "ode", 4)):
        with pytest.raises(UserError, match=r"First run fdtrain evaluate grid"):
            load_optimised(tmp_path, weights, solver, steps)


@pytest.mark.parametrize("content", ["{", "[]", '{"abc": 3}', '{"abc": {"x": "y"}}'])
def test_a_damaged_file_of_grids(tmp_path, content):
    (tmp_path / GRIDS).write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        load_optimised(tmp_path, "abc", "ode", 2)


def test_the_search_finds_the_least_distance_and_stays_monotone():
    target = (1.0, 0.31, 0.17, 0.02, 0.0)
    seen = []

    def distance(times):
        seen.append(times)
        return sum((a - b) ** 2 for a, b in zip(times, target, strict=True))

    starts = [tuple(time_grid(name, 4)) for name in (GRID, "two_ended:1,1")]
    times, value = grid.search(distance, starts, 60)
    assert times == pytest.approx(target, abs=5e-3)
    assert value == distance(times)
    assert all(a > b for grid in seen for a, b in pairwise(grid))
    assert grid.search(distance, starts, 60) == (times, value)


def test_the_search_passes_over_what_is_not_a_number():
    times, value = grid.search(
        lambda times: float("nan") if times[1] > 0.5 else times[1], [(1.0, 0.6, 0.0), (1.0, 0.5, 0.0)], 3
    )
    assert value == times[1] < 0.5
