"""All that a checkpoint holds, and going on from one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.capacity.layout import RunLayout
from fdtrain.checkpoint import retention, soundness, store
from fdtrain.checkpoint.writer import Snapshot
from fdtrain.errors import UserError
from fdtrain.training.ema import Average
from fdtrain.training.engine import Engine
from fdtrain.training.metrics import MetricSums


class HostCopy:
    """A number of the device on its way to the host: reading it waits for the copy, not for what was begun later."""

    def __init__(self, value: Tensor):
        self._copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        self._copy.copy_(value, non_blocking=True)
        self._done = torch.cuda.Event() if value.is_cuda else None
        if self._done is not None:
            self._done.record()

    def read(self) -> float:
        if self._done is not None:
            self._done.synchronize()
        return self._copy.item()


class TrainState:
    """Weights, moments and averages, the log's unfinished sums, and the counts on which later steps depend.

    The first of the averages is the exponential one; ``settings`` are what fixes the run's trajectory.
    """

    def __init__(
        self,
        engine: Engine,
        averages: list[Average],
        sums: MetricSums,
        layout: RunLayout,
        settings: dict[str, Any],
        code: str | None,
    ):
        self.engine, self.averages, self.sums, self.layout = engine, averages, sums, layout
        self.settings, self.code = settings, code
        self.rollbacks = 0
        """Times that the run went back to a checkpoint."""

    def snapshot(self, step: int, series: list[str], config: str, scheduled: bool) -> Snapshot:
        """What is to be saved after ``step`` steps; the tensors are live. Every rank must call it.

        Args:
            series: :data:`store.CHECKPOINTS`, :data:`store.AVERAGES`, or both, in the order in which they are wanted.
            scheduled: a checkpoint is due at this step whether or not the process ends.
        """
        layout = self.layout
        state = store.State(
            step=step,
            images=step * layout.lanes * layout.lane_images,
            world_size=layout.world_size,
            zero_stage=layout.zero_stage,
            window=self.sums.all_ranks(),
            skips=int(self.engine.guard.skips),
            rollbacks=self.rollbacks,
            counters=self.engine.counters(),
            run=self.settings,
            code=self.code,
            scheduled=scheduled,
        )
        exponential, *powers = [average.fragments for average in self.averages]
        averages = [fragment for fragments in powers for fragment in fragments]
        fragments = {store.CHECKPOINTS: self.engine.fragments + exponential + averages, store.AVERAGES: averages}
        return Snapshot({name: fragments[name] for name in series}, self.engine.model.spec, config, state)

    def load(self, path: Path) -> int:
        """Take over a checkpoint, whatever number of ranks wrote it; returns its step.

        Raises:
            UserError: it cannot be read.
        """
        state, parts = store.read_state(path), store.open_parts(path)
        if len(state.window) != len(self.sums):
            raise UserError(f"{path / store.STATE_FILE} has a log window of another version. Resume from another.")
        self.engine.load(parts, state.counters)
        for average in self.averages:
            average.load(parts, state.step)
        self.sums.restart(state.window if distributed.rank() == 0 else None)
        self.engine.guard.skips.fill_(state.skips)
        self.rollbacks = state.rollbacks
        return state.step


def rollback_target(folder: Path, stalled: int | None) -> Path | None:
    """The newest sound and scheduled checkpoint of a run folder that a run in trouble may go back to, made the newest
    of all: what came later would outrank it when the run resumes. One of step ``stalled`` or later, after which no
    step succeeded, serves if there is no earlier one. Every rank must call it."""

    def candidates() -> list[Path]:
        # A run that was not interrupted would not have the others.
        usable = [p for p in store.committed(folder) if soundness.trouble(p) is None and store.read_state(p).scheduled]
        return sorted(usable, key=lambda path: stalled is not None and store.step_of(path) >= stalled)

    path, _ = soundness.newest(distributed.found_by_first(candidates), together=True)
    if path is not None and distributed.rank() == 0:
        retention.roll_back_to(path)
    return path
