import pytest
import torch

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.solvers import GRID, SOLVERS, sample, time_grid
from fdtrain.diffusion.solvers.stepper import Stepper


def field(x, t):
    return -torch.tanh(x * (1 + t.view(-1, 1, 1, 1)))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("steps", "interval"),
    [(1, CLOSED), (2, CLOSED), (7, CLOSED), (2, Interval(0.002, 0.9999)), (7, Interval(0.002)), (7, Interval(0, 0.9))],
)
def test_arrays_of_numpy_as_tensors(solver, steps, interval):
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(steps + 1, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    times = time_grid(GRID, steps, interval=interval)
    expected = sample(field, noises[-1], times, solver, lambda i: noises[i], interval=interval)
    stepper, x = Stepper(solver, times, interval), noises[-1].numpy()
    for i, t in enumerate(stepper.times):
        F = field(torch.as_tensor(x), torch.full((2,), t, dtype=torch.float64)).numpy()
        x = stepper.advance(i, x, F, noises[i].numpy() if stepper.stochastic else None)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(torch.as_tensor(x), expected, rtol=1e-12, atol=1e-12)


def test_a_solver_that_there_is_not():
    with pytest.raises(ValueError, match="there is no solver 'heun'; there are sde, ode"):
        Stepper("heun", [1.0, 0.0])
