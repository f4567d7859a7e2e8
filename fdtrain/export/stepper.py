"""A solver one evaluation at a time, for samplers that call the network themselves, on arrays of any library."""

from collections.abc import Sequence
from typing import Any

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.solvers.named import SOLVERS
from fdtrain.diffusion.solvers.step import FORMS


class Stepper:
    """From noise at ``t = 1`` to an image at ``t = 0``, as :func:`fdtrain.diffusion.solvers.sample` goes.

    ``times[i]`` is the time of evaluation ``i``. The image that :meth:`advance` returns is where the next evaluation
    is made, so a correction is applied one call later. On a truncated interval it goes from ``t_max``, and the last
    step is the prediction of the image.

    Args:
        solver: one that evaluates the network once a step.
        times: falling from 1 to 0, or within the interval: :func:`fdtrain.diffusion.solvers.time_grid`.
        interval: of the model.

    Raises:
        ValueError: there is no such solver.
    """

    def __init__(self, solver: str, times: Sequence[float], interval: Interval = CLOSED):
        if solver not in SOLVERS or SOLVERS[solver].evaluations_per_step != 1:
            known = ", ".join(name for name, found in SOLVERS.items() if found.evaluations_per_step == 1)
            raise ValueError(f"there is no solver {solver!r}; there are {known}")
        self.times, self.stochastic = list(times), SOLVERS[solver].stochastic
        self._form, self._steps = FORMS[SOLVERS[solver].form], SOLVERS[solver].steps_within(self.times, interval)
        self._values: list[Any] = []
        self._start: Any = None

    def advance(self, i: int, x: Any, F: Any, noise: Any = None) -> Any:
        """The image at ``times[i + 1]``, from ``x`` at ``times[i]`` and the field ``F`` there.

        Args:
            noise: standard normal like ``x``, of the stochastic solvers.
        """
        step = self._steps[i]
        self._values = [self._form(x, F, step.s), *self._values][:4]
        before = self._steps[i - 1].corrector if i else ()
        if before:
            x = _combine(self._start, before, self._values)
        self._start = step.linear * x
        if self.stochastic:
            self._start = self._start + step.noise * noise
        return _combine(self._start, step.predictor, self._values)


def _combine(start: Any, weights: Sequence[float], values: Sequence[Any]) -> Any:
    for weight, value in zip(weights, values):
        start = start + float(weight) * value
    return start
