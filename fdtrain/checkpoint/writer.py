"""Checkpoints written while training goes on: the ranks' own threads write, and all agree when they have."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import Fragment, part_name, write_part
from fdtrain.errors import NotSaved, UserError
from fdtrain.lock import GONE
from fdtrain.networks.model import ModelSpec
from fdtrain.resilience.consensus import Consensus

logger = logging.getLogger(__name__)

WRITING, FAILED = "checkpoint is being written", "checkpoint failed"
RETRY_PAUSE = 5.0
"""Seconds before the last checkpoint is tried again."""


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves of a step: its ``fragments``, which may be live, by the series to which they belong, in the
    order in which these are committed; and their description (store.py)."""

    fragments: dict[str, list[Fragment]]
    spec: ModelSpec
    config: str
    state: store.State


class CheckpointWriter:
    """Saves one step at a time, as a checkpoint, a snapshot of the averages, or both; see :meth:`begin`.

    A save has two phases: every rank writes its part; when all agree that this is done, rank 0 commits the folders.
    The consensus costs the step nothing (resilience/consensus.py). A phase that fails anywhere ends the save
    everywhere: what was there before stays, and the run goes on.

    The consensus must know the flags :data:`WRITING` and :data:`FAILED`, and :data:`fdtrain.lock.GONE`.

    Args:
        most_failures: that may follow one another.
        retain: deletes older checkpoints than the one just written.
    """

    def __init__(
        self,
        folder: Path,
        most_failures: int,
        retain: Callable[[Path], None],
        consensus: Consensus,
        say: Callable[[str], None],
    ):
        self.folder, self.most_failures, self.retain = folder, most_failures, retain
        self.consensus, self.say = consensus, say
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.buffers: dict[str, Tensor] = {}
        """By the fragments' keys."""
        self.temporaries: list[Path] = []
        """The folders of the latest save, while they are being written."""
        self.phases: list[Callable[[], None]] = []
        """What each rank is still to do, after all have finished the ``task`` at hand."""
        self.task: Future | None = None
        self.exchanges = 0
        """Since the task was begun."""
        self.failures = 0
        self.is_final = False
        """No other checkpoint will follow this one."""
        self.problem: str | None = None
        """Of the latest checkpoint, if it could not be written."""
        self.others: frozenset[str] = frozenset()
        """What was agreed on while :meth:`finish` waited."""
        self.last: Path | None = None
        """The newest checkpoint that this run wrote or resumed from."""

    def save_final(self, snapshot: Snapshot, seconds: float) -> None:
        """Save the last checkpoint of this process, trying again for ``seconds``. Every rank must call it.

        Raises:
            NotSaved: it could not be written.
        """
        deadline, self.is_final = time.monotonic() + seconds, True
        while True:
            self.begin(snapshot)
            self.finish()
            if self.problem is None:
                return
            left = distributed.broadcast(deadline - time.monotonic())
            if left <= 0:
                raise NotSaved(
                    f"the run has ended, but {self.problem}. Make room in {self.folder}, or repair the disk, and go on "
                    "with --resume auto. checkpoint.retry_timeout_s is how long it is tried again."
                )
            self.say(f"fdtrain: warning: {self.problem}. Trying again for {left:.0f} s.")
            time.sleep(min(RETRY_PAUSE, left))

    def begin(self, snapshot: Snapshot) -> float:
        """Copy the fragments and start to write them. Every rank must call it.

        Returns:
            Seconds for which training was blocked.
        """
        started = time.perf_counter()
        self.finish()
        self.problem = None
        name, copies = store.temporary_name(snapshot.state.step), self._copy(snapshot)
        self.temporaries = [self.folder / series / name for series in copies]

        def write() -> None:
            for temporary, fragments in zip(self.temporaries, copies.values(), strict=True):
                # A run's folder that has disappeared is not made anew: it may come back.
                temporary.parent.mkdir(exist_ok=True)
                temporary.mkdir(exist_ok=True)
                if distributed.rank() == 0:
                    store.describe(temporary, snapshot.spec, snapshot.config, snapshot.state)
                path = temporary / part_name(distributed.rank())
                store.record_digest(path, write_part(path, fragments))

        self.phases = [write, self._commit]
        self._next_phase()
        return time.perf_counter() - started

    def _copy(self, snapshot: Snapshot) -> dict[str, list[Fragment]]:
        """The fragments on the CPU, in buffers that are made once. What several series have is copied once."""
        for key, tensor in {f.key: f.tensor for of_series in snapshot.fragments.values() for f in of_series}.items():
            if key not in self.buffers:
                self.buffers[key] = torch.empty(len(tensor), pin_memory=tensor.is_cuda)
            self.buffers[key].copy_(tensor, non_blocking=True)
        if distributed.on_gpu():
            torch.cuda.synchronize()
        return {
            series: [replace(f, tensor=self.buffers[f.key]) for f in fragments]
            for series, fragments in snapshot.fragments.items()
        }

    def _next_phase(self) -> None:
        self.task, self.exchanges = self.thread.submit(self.phases.pop(0)), 0

    def exchange(self) -> frozenset[str]:
        """Once a step, on every rank: go on with what is being written, and learn what else all have agreed on.

        Raises:
            UserError: too many saves in a row have failed, or the run's folder has disappeared.
        """
        if self.task is not None:
            self.exchanges += 1
            if not self.task.done():
                self.consensus.raise_flag(WRITING)
            elif self.task.exception() is not None:
                self.consensus.raise_flag(FAILED)
        agreed = self.consensus.exchange()
        if GONE in agreed:
            saved = f" Its last checkpoint was {self.last.name}." if self.last else ""
            raise UserError(
                f"{self.folder} was deleted, renamed or replaced while the run was at work, or its lock removed. "
                f"Put it back, and go on with --resume auto.{saved}"
            )
        others, self.others = self.others | agreed, frozenset()
        self._advance(agreed)
        return others

    def _advance(self, agreed: frozenset[str]) -> None:
        """Enter the next phase when every rank has finished this one."""
        # What was agreed had been raised an exchange earlier.
        if self.task is None or self.exchanges < 2 or WRITING in agreed:
            return
        if FAILED in agreed:
            self._fail(self.task.exception())
        elif self.phases:
            self._next_phase()
        else:
            self.task, self.failures = None, 0
            saved = store.final_path(self.temporaries[-1])
            self.last = saved if saved.parent.name == store.CHECKPOINTS else self.last

    def _commit(self) -> None:
        for temporary in self.temporaries if distributed.rank() == 0 else []:
            final = store.commit(temporary, distributed.world_size())
            if final.parent.name == store.CHECKPOINTS:
                self.retain(final)

    def _fail(self, error: BaseException | None) -> None:
        self.task = None
        self.failures += 1
        if distributed.rank() == 0:
            store.clean(self.folder)
        if error is not None and not isinstance(error, OSError):
            raise error
        if error is not None and distributed.rank() != 0:
            logger.warning("warning: rank %d cannot write its part (%s).", distributed.rank(), error)
        newest = f"the newest is still {self.last.name}" if self.last else "there is none yet"
        reason = f" ({error})" if error is not None else ""
        saved = store.final_path(self.temporaries[-1])
        if saved.parent.name == store.CHECKPOINTS:
            self.problem = f"the checkpoint {saved.name} could not be written{reason}; {newest}"
        else:
            self.problem = f"the averages of {saved.name} could not be written{reason}; syntheses will be less exact"
        if self.is_final:
            return
        if self.failures > self.most_failures:
            raise UserError(
                f"{self.problem}. checkpoint.max_failures is {self.most_failures}: make room in {self.folder}, or "
                "repair the disk, and go on with --resume auto."
            )
        count = f"{self.failures} of {self.most_failures} failures"
        self.say(f"fdtrain: warning: {self.problem}. Training goes on ({count}).")

    def finish(self) -> None:
        """Wait until nothing is being written, on any rank. Every rank must call it."""
        while self.task is not None:
            # Waits. Its error, if there is one, is reported by exchange().
            self.task.exception()
            # For whoever calls exchange() next.
            self.others |= self.exchange()
