"""All that a checkpoint holds, and going on from one."""

from pathlib import Path
from typing import Any

from torch import Tensor

from fdtrain import distributed
from fdtrain.capacity.layout import RunLayout
from fdtrain.checkpoint import retention, soundness, store
from fdtrain.checkpoint.writer import Snapshot
from fdtrain.errors import UserError
from fdtrain.training.ema import Average, PowerAverages
from fdtrain.training.engine import Engine
from fdtrain.training.metrics import MetricSums


class TrainState:
    """Weights, moments and averages, the log's unfinished sums, and the counts on which later steps depend.

    Args:
        settings: what fixes the run's trajectory.
        code: commit of the program.
    """

    def __init__(
        self,
        engine: Engine,
        average: Average,
        power_averages: PowerAverages,
        layout: RunLayout,
        settings: dict[str, Any],
        code: str | None,
    ):
        self.engine, self.average, self.power_averages, self.layout = engine, average, power_averages, layout
        self.settings, self.code = settings, code
        self.sums = MetricSums(engine.device)
        self.rollbacks = 0
        """Times that the run went back to a checkpoint."""
        self._skips = 0
        self._skipped: Tensor | None = None

    def count_skip(self, skipped: Tensor) -> None:
        """After a step: 1 if it was skipped, else 0, on the device."""
        self._skipped = skipped

    @property
    def skips(self) -> int:
        """Steps skipped in a row. Asked once the next step is under way, it does not wait for the device."""
        if self._skipped is not None:
            self._skips = self._skips + 1 if self._skipped.item() else 0
            self._skipped = None
        return self._skips

    def snapshots(self, step: int, series: list[str], config: str, scheduled: bool) -> list[Snapshot]:
        """What is to be saved after ``step`` steps; the tensors are live. Every rank must call it.

        Args:
            series: :data:`store.CHECKPOINTS`, :data:`store.AVERAGES`, or both, in the order in which they are wanted.
            config: the run's, as YAML.
            scheduled: a checkpoint is due at this step whether or not the process ends.
        """
        layout = self.layout
        state = store.State(
            step=step,
            images=step * layout.lanes * layout.lane_images,
            world_size=layout.world_size,
            zero_stage=layout.zero_stage,
            window=self.sums.gathered(),
            skips=self.skips,
            rollbacks=self.rollbacks,
            counters=self.engine.counters(),
            run=self.settings,
            code=self.code,
            scheduled=scheduled,
        )
        averages = self.power_averages.fragments
        whole = self.engine.fragments + self.average.fragments + averages
        fragments = {store.CHECKPOINTS: whole, store.AVERAGES: averages}
        return [Snapshot(name, fragments[name], self.engine.model.spec, config, state) for name in series]

    def load(self, path: Path) -> int:
        """Take over a checkpoint, whatever number of ranks wrote it; returns its step.

        Raises:
            UserError: it cannot be read.
        """
        state, parts = store.read_state(path), store.open_parts(path)
        if len(state.window) != len(self.sums):
            raise UserError(f"{path / store.STATE_FILE} has a log window of another version. Resume from another.")
        self.engine.load(parts, state.counters)
        self.average.load(parts, state.step)
        self.power_averages.load(parts)
        self.sums.restart(state.window if distributed.rank() == 0 else None)
        self._skips, self._skipped, self.rollbacks = state.skips, None, state.rollbacks
        return state.step


def rollback_target(folder: Path, useless: int | None) -> Path | None:
    """The newest sound and scheduled checkpoint of a run folder that a run in trouble may go back to, made the newest
    of all: what came later would outrank it when the run resumes. That of the step ``useless`` serves if there is no
    earlier one."""

    def fits(path: Path) -> None:
        if reason := soundness.trouble(path):
            raise UserError(reason)
        if not store.read_state(path).scheduled:
            raise UserError("a run that was not interrupted would not have it")

    def fits_and_is_earlier(path: Path) -> None:
        fits(path)
        if useless is not None and store.step_of(path) >= useless:
            raise UserError("no step after it succeeded")

    path = soundness.newest(folder, fits_and_is_earlier)[0] or soundness.newest(folder, fits)[0]
    if path is not None:
        retention.roll_back_to(path)
    return path
