import pytest
import torch

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.solvers import SOLVERS, sample, time_grid
from fdtrain.export.stepper import Stepper

ONCE = [name for name, solver in SOLVERS.items() if solver.evaluations_per_step == 1]


def field(x, t):
    return -torch.tanh(x * (1 + t.view(-1, 1, 1, 1)))


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("solver", ONCE)
@pytest.mark.parametrize(
    ("steps", "interval"),
    [(1, CLOSED), (2, CLOSED), (7, CLOSED), (2, Interval(0.002, 0.9999)), (7, Interval(0.002)), (7, Interval(0, 0.9))],
)
def test_it_goes_as_the_sampler_does(solver, steps, interval, library):
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(steps + 1, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    times = time_grid(SOLVERS[solver].grid, steps, interval=interval)
    expected = sample(field, noises[-1], times, solver, lambda i: noises[i], interval=interval)
    stepper, x = Stepper(solver, times, interval), noises[-1]
    x = x if library == "torch" else x.numpy()
    for i, t in enumerate(times[:-1]):
        F = field(torch.as_tensor(x), torch.full((2,), t, dtype=torch.float64))
        noise = noises[i] if library == "torch" else noises[i].numpy()
        x = stepper.advance(i, x, F if library == "torch" else F.numpy(), noise)
    torch.testing.assert_close(torch.as_tensor(x), expected, rtol=1e-12, atol=1e-12)


def test_solvers_that_evaluate_twice():
    with pytest.raises(ValueError, match="there is no solver 'heun'; there are sde, ode"):
        Stepper("heun", [1.0, 0.0])
