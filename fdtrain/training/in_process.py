"""Training in this process, for notebooks and scripts: ``fdtrain.train`` (docs/api.md).

    run = fdtrain.train("digits", {"name": "short", "training.steps": 200})
    pyplot.plot(*run.metrics["train/bits_per_dim"])
    images = run.model.sample(16)

The process goes on afterwards as it was before.
"""

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fdtrain import distributed
from fdtrain.api import TrainedModel, load
from fdtrain.config import Layer
from fdtrain.errors import NotSaved, Preempted, UserError, missing
from fdtrain.evaluation.run_folder import read_metrics
from fdtrain.resilience.signals import interruptible
from fdtrain.training.plan import prepare


@dataclass(frozen=True)
class TrainedRun:
    """A run that was trained; ``folder`` has all of it."""

    folder: Path

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The log by name, such as ``train/bits_per_dim``: steps and values, ``(2, n)`` float64."""
        points: dict[str, list[tuple[float, float]]] = {}
        for line in read_metrics(self.folder / "metrics.jsonl"):
            step = line.pop("step")
            for name, value in line.items():
                points.setdefault(name, []).append((step, value))
        return {name: np.array(of_name, dtype=float).T for name, of_name in points.items()}

    @cached_property
    def model(self) -> TrainedModel:
        """With its averaged weights, on the GPU where there is one."""
        return load(self.folder, "auto")


def train(config: Layer, *over: Layer, resume: bool = False, allow_code: Sequence[str | Path] = ()) -> TrainedRun:
    """Train in this process as ``fdtrain train`` does: the same numbers, files, log and messages.

    Ctrl-C, or a notebook's button, saves after the step at hand and raises KeyboardInterrupt; a second one does so at
    once. Python allows this on the main thread alone. torch's generator and TF32 are left as training sets them.

    Args:
        config: a name that ``fdtrain configs`` lists, a file, or a mapping, with sections or with dotted keys.
        over: is laid over it, such as ``{"name": "short", "training.steps": 200}``.
        resume: go on from the newest checkpoint of the run's folder, or begin where there is none. Of a finished run
            nothing is left to do.
        allow_code: files that are executed, of those that ``plugins`` names (docs/extending.md).

    Raises:
        UserError: the configuration, the data or the folder is wrong, training failed, its last checkpoint could not
            be written, or the extra ``train`` is not installed.
        KeyboardInterrupt: it was interrupted; says where it was saved.
    """
    try:
        with distributed.visiting():
            plan = prepare([config, *over], [], resume, allow_code=allow_code)
            # Imports DeepSpeed, which takes seconds: a mistake in the configuration is told before that. It looks for
            # libraries with a compiler, whose errors it hides if they go to the process's own stream, not a notebook's.
            with redirect_stderr(sys.__stderr__ or sys.stderr):
                from fdtrain.training.build import carry_out

            carry_out(plan, interruptible)
    except ModuleNotFoundError as error:
        raise UserError(missing(error.name or str(error))) from None
    except (UserError, NotSaved, Preempted, KeyboardInterrupt) as error:
        # A notebook keeps the last error, whose frames would keep the model and the reading processes.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, UserError | KeyboardInterrupt):
            raise
        raise (UserError if isinstance(error, NotSaved) else KeyboardInterrupt)(str(error)) from None
    return TrainedRun(plan.config.folder)
