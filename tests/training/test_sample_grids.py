import pytest
from models import DIGITS

from fdtrain.config import MonitorConfig
from fdtrain.errors import UserError
from fdtrain.training import callbacks


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"sample_grid": "sine"}, r"monitor\.sample_grid: there is no grid 'sine'; take two_ended, which serves"),
        ({"sample_grid": [1.0, 0.5, 0.6, 0.0], "sample_steps": 3}, r"monitor\.sample_grid: .* fall strictly"),
        ({"sample_grid": [1.0, 0.5, 0.0], "sample_steps": 3}, r"monitor\.sample_grid: 3 times are 2 steps, not 3"),
    ],
)
def test_a_wrong_grid_is_refused_before_training(settings, part):
    settings = MonitorConfig(**settings)
    with pytest.raises(UserError, match=part):
        callbacks.monitor_sampler(settings, DIGITS)


@pytest.mark.parametrize("grid", [None, "two_ended:0.1,0.1", (1.0, 0.3, 0.0)])
def test_grids_of_the_configuration(grid):
    settings = MonitorConfig(sample_grid=grid, sample_steps=2)
    assert len(callbacks.monitor_sampler(settings, DIGITS).times(DIGITS)) == 3
