"""A solver one evaluation at a time, on arrays of any library: :func:`fdtrain.diffusion.solvers.sample` and exports."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.solvers.named import SOLVERS, Solver
from fdtrain.diffusion.solvers.step import INTERPOLATED, Step


class Stepper:
    """From noise at ``t = 1`` to an image at ``t = 0``.

    ``times[i]`` is the time of evaluation ``i``. The image that :meth:`advance` returns is where the next evaluation
    is made, so a correction is applied one call later. On a truncated interval it goes from ``t_max``, and the last
    step is the prediction of the image.

    Args:
        solver: a name in :data:`SOLVERS`, or a solver.
        times: falling from 1 to 0, or within the interval: :func:`fdtrain.diffusion.solvers.time_grid`.
        interval: of the model.

    Raises:
        ValueError: there is no such solver.
    """

    def __init__(self, solver: str | Solver, times: Sequence[float], interval: Interval = CLOSED):
        if isinstance(solver, str):
            if solver not in SOLVERS:
                raise ValueError(f"there is no solver {solver!r}; there are {', '.join(SOLVERS)}")
            solver = SOLVERS[solver]
        self.stochastic, self._form = solver.stochastic, INTERPOLATED[solver.form]
        self._steps = _steps(solver, tuple(times), interval)
        self.times = [step.s for step in self._steps]
        # A corrector weighs the newest evaluation too.
        self._memory = max(max(len(step.predictor), len(step.corrector) - 1) for step in self._steps)
        self._values: list[Any] = []
        self._start: Any = None

    def advance(self, i: int, x: Any, F: Any, noise: Any = None) -> Any:
        """Where evaluation ``i + 1`` is made, or the image, from ``x`` at ``times[i]`` and the field ``F`` there.

        Args:
            noise: standard normal like ``x``, of the stochastic solvers.
        """
        step = self._steps[i]
        self._values = [self._form(x, F, step.s), *self._values]
        before = self._steps[i - 1].corrector if i else ()
        if before:
            x = _combine(self._start, before, self._values)
        self._values = self._values[: self._memory]
        self._start = step.linear * x
        if self.stochastic:
            self._start = self._start + step.noise * noise
        return _combine(self._start, step.predictor, self._values)


@lru_cache(maxsize=64)
def _steps(solver: Solver, times: tuple[float, ...], interval: Interval) -> list[Step]:
    """Once per grid, whatever the number of batches."""
    return solver.steps_within(times, interval)


def _combine(start: Any, weights: Sequence[float], values: Sequence[Any]) -> Any:
    for weight, value in zip(weights, values):
        start = start + float(weight) * value
    return start
