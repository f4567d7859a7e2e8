"""Averages of any relative length, synthesised after training from the power-function averages of a run.

The mathematics is profiles.py's. Here the averages are found on the disk, and their tensors added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fdtrain.checkpoint import soundness, store
from fdtrain.checkpoint.fragments import FragmentReader, power_average
from fdtrain.checkpoint.profiles import LONGEST, SHORTEST, Fit, fit
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec

MAX_ERROR = 0.05
"""Of the profile (:class:`fdtrain.checkpoint.profiles.Fit`); an average with more is not the one of its name."""


@dataclass(frozen=True)
class Tracked:
    """An average that the run has tracked, as it was after ``step`` steps."""

    step: int
    length: float
    parts: FragmentReader


class TrackedAverages:
    """The power-function averages of a run up to one step.

    They are those of a checkpoint, or of a snapshot, and those of all earlier snapshots of its run.

    Args:
        folder: the checkpoint or snapshot, which must be sound (soundness.py).
        spec: of its model.

    Raises:
        UserError: there are none, or a snapshot is damaged or of another model.
    """

    def __init__(self, folder: Path, spec: ModelSpec):
        self.folder, self.spec, self.step = folder, spec, store.read_state(folder).step
        run = folder.parent.parent
        earlier = [path for path in store.committed(run, store.AVERAGES) if store.step_of(path) < self.step]
        self.tracked = self._of(folder, self.step)
        if not self.tracked:
            raise UserError(
                f"{folder} has no averages to choose a length from: the run was trained without ema.lengths. "
                "Only the average of its ema.decay is there."
            )
        for path in reversed(earlier):
            self._check(path)
            self.tracked += self._of(path, store.step_of(path))

    @staticmethod
    def _of(folder: Path, step: int) -> list[Tracked]:
        parts = store.open_parts(folder)
        if any(not SHORTEST <= length <= LONGEST for length in parts.lengths()):
            raise UserError(f"{folder} holds averages of impossible lengths ({parts.lengths()}). Delete it.")
        return [Tracked(step, length, parts) for length in parts.lengths()]

    def _check(self, snapshot: Path) -> None:
        reason = soundness.fault(snapshot)
        if reason is None and (differences := ModelSpec.load(snapshot / store.MODEL_FILE).differences(self.spec)):
            reason = f"it is of another model: {'; '.join(differences)}"
        if reason is not None:
            raise UserError(
                f"{snapshot} cannot be used: {reason}. Restore it, or delete it and go on with the other snapshots."
            )

    @property
    def lengths(self) -> list[float]:
        """Those that the run tracks."""
        return sorted({each.length for each in self.tracked})

    def fit(self, length: float) -> Fit:
        """How the average of a relative length is made of the tracked ones, in their order.

        Raises:
            UserError: there is no such length, or they do not give it.
        """
        if not SHORTEST <= length <= LONGEST:
            raise UserError(f"an average has a relative length from {SHORTEST} to {LONGEST:.4f}, not {length:g}.")
        found = self._fit(length)
        if not found.error <= MAX_ERROR:
            served = self.served(np.geomspace(SHORTEST, LONGEST, 100).tolist() + self.lengths)
            raise UserError(
                f"the average of relative length {length:g} at step {self.step} cannot be had from {self._sources()}: "
                f"its profile would be {found.error:.0%} off. They give lengths from {min(served):.3f} to "
                f"{max(served):.3f}; more snapshots (ema.snapshot_every) give more."
            )
        return found

    def served(self, lengths: Sequence[float]) -> list[float]:
        """Those of the lengths that :meth:`fit` accepts."""
        return [length for length in lengths if self._fit(length).error <= MAX_ERROR]

    def _fit(self, length: float) -> Fit:
        steps, lengths = [each.step for each in self.tracked], [each.length for each in self.tracked]
        return fit(steps, lengths, self.step, length)

    def _sources(self) -> str:
        steps, lengths = len({each.step for each in self.tracked}), ", ".join(f"{each:g}" for each in self.lengths)
        return f"{len(self.tracked)} tracked averages (of length {lengths}, at {steps} step{'s'[: steps - 1]})"

    def describe(self, length: float) -> str:
        """What the average of a relative length is made of, and how exactly. UserError as :meth:`fit`."""
        made = f"average of relative length {length:g} at step {self.step}, from {self._sources()}"
        return f"{made}: profile error {self.fit(length).error:.1e}"

    def model(self, length: float) -> Model:
        """The model with the average of a relative length, on the CPU, in evaluation mode, float32.

        Sums are in float64, one tensor at a time: of the tracked averages no more than one tensor is in memory.

        Raises:
            UserError: as :meth:`fit`, or a part cannot be read.
        """
        coefficients = self.fit(length).coefficients.tolist()
        model = Model(self.spec).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            total = torch.zeros(parameter.numel(), dtype=torch.float64)
            for tracked, coefficient in zip(self.tracked, coefficients, strict=True):
                part = tracked.parts.read(power_average(tracked.length), name, 0, len(total))
                total.add_(part, alpha=coefficient)
            parameter.copy_(total.view_as(parameter))
        return model
