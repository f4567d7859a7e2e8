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
from fdtrain.checkpoint import retention, store
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
class Retention:
    """Which checkpoints stay, and how many in a row may fail to be written."""

    last: int
    every: int | None
    failures: int


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves of a step in a folder of the ``series``: its ``fragments``, which may be live, and their
    description (store.py)."""

    series: str
    fragments: list[Fragment]
    spec: ModelSpec
    config: str
    state: store.State


class CheckpointWriter:
    """Saves one step at a time, as a checkpoint, a snapshot of the averages, or both; see :meth:`begin`.

    A save has two phases: every rank writes its part; when all agree that this is done, rank 0 commits the folders.
    The consensus costs the step nothing (resilience/consensus.py). A phase that fails anywhere ends the save
    everywhere: what was there before stays, and the run goes on.

    The consensus must know the flags :data:`WRITING` and :data:`FAILED`, and :data:`fdtrain.lock.GONE`.
    """

    def __init__(self, folder: Path, policy: Retention, consensus: Consensus, say: Callable[[str], None]):
        self.folder, self.policy, self.consensus, self.say = folder, policy, consensus, say
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.buffers: dict[str, Tensor] = {}
        """By the fragments' keys."""
        self.temporaries: list[Path] = []
        """The folders of the latest save, while they are being written."""
        self.phase: str | None = None
        self.task: Future | None = None
        self.exchanges = 0
        """Of this phase."""
        self.failures = 0
        self.is_final = False
        """No other checkpoint will follow this one."""
        self.problem: str | None = None
        """Of the latest checkpoint, if it could not be written."""
        self.others: frozenset[str] = frozenset()
        """What was agreed on while :meth:`finish` waited."""
        self.last: Path | None = None
        """The newest checkpoint that this run wrote or resumed from."""

    def save_final(self, snapshots: list[Snapshot], seconds: float) -> None:
        """Save the last checkpoint of this process, trying again for ``seconds``. Every rank must call it.

        Raises:
            NotSaved: it could not be written.
        """
        deadline, self.is_final = time.monotonic() + seconds, True
        while True:
            self.begin(snapshots)
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

    def begin(self, snapshots: list[Snapshot]) -> float:
        """Copy the fragments and start to write them. Every rank must call it.

        The snapshots are of one step. They are committed in order, after all of them are written.

        Returns:
            Seconds for which training was blocked.
        """
        started = time.perf_counter()
        self.finish()
        self.problem = None
        self.temporaries = [self.folder / s.series / store.temporary_name(s.state.step) for s in snapshots]
        copies, first = self._copy(snapshots), distributed.rank() == 0

        def write() -> None:
            for temporary, snapshot, fragments in zip(self.temporaries, snapshots, copies, strict=True):
                # A run's folder that has disappeared is not made anew: it may come back.
                temporary.parent.mkdir(exist_ok=True)
                temporary.mkdir(exist_ok=True)
                if first:
                    store.describe(temporary, snapshot.spec, snapshot.config, snapshot.state)
                path = temporary / part_name(distributed.rank())
                store.record_digest(path, write_part(path, fragments))

        self._enter("parts", write)
        return time.perf_counter() - started

    def _copy(self, snapshots: list[Snapshot]) -> list[list[Fragment]]:
        """The fragments of each on the CPU, in buffers that are made once. What several have is copied once."""
        for key, tensor in {f.key: f.tensor for s in snapshots for f in s.fragments}.items():
            if key not in self.buffers:
                self.buffers[key] = torch.empty(len(tensor), pin_memory=tensor.is_cuda)
            self.buffers[key].copy_(tensor, non_blocking=True)
        if distributed.on_gpu():
            torch.cuda.synchronize()
        return [[replace(f, tensor=self.buffers[f.key]) for f in s.fragments] for s in snapshots]

    def _enter(self, phase: str, work: Callable[[], None] | None) -> None:
        self.phase, self.task, self.exchanges = phase, self.thread.submit(work) if work else None, 0

    def exchange(self) -> frozenset[str]:
        """Once a step, on every rank: go on with what is being written, and learn what else all have agreed on.

        Raises:
            UserError: too many saves in a row have failed, or the run's folder has disappeared.
        """
        self._raise_flags()
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

    def _raise_flags(self) -> None:
        """Report the state of this rank's work to the others."""
        if self.phase is None:
            return
        self.exchanges += 1
        if self.task is not None and not self.task.done():
            self.consensus.raise_flag(WRITING)
        elif self.task is not None and self.task.exception() is not None:
            self.consensus.raise_flag(FAILED)

    def _advance(self, agreed: frozenset[str]) -> None:
        """Enter the next phase when every rank has finished this one."""
        # What was agreed had been raised an exchange earlier.
        if self.phase is None or self.exchanges < 2 or WRITING in agreed:
            return
        if FAILED in agreed:
            self._fail()
        elif self.phase == "parts":
            self._enter("commit", self._commit if distributed.rank() == 0 else None)
        else:
            self.phase, self.task, self.failures = None, None, 0
            saved = store.final_path(self.temporaries[-1])
            self.last = saved if saved.parent.name == store.CHECKPOINTS else self.last

    def _commit(self) -> None:
        parts = distributed.world_size()
        for temporary in self.temporaries:
            if temporary.parent.name == store.CHECKPOINTS:
                retention.retain(store.commit(temporary, parts), self.policy.last, self.policy.every)
            else:
                store.publish(temporary, parts)

    def _fail(self) -> None:
        error = self.task.exception() if self.task is not None else None
        self.phase, self.task = None, None
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
        if self.failures > self.policy.failures:
            raise UserError(
                f"{self.problem}. checkpoint.max_failures is {self.policy.failures}: make room in {self.folder}, or "
                "repair the disk, and go on with --resume auto."
            )
        count = f"{self.failures} of {self.policy.failures} failures"
        self.say(f"fdtrain: warning: {self.problem}. Training goes on ({count}).")

    def finish(self) -> None:
        """Wait until nothing is being written, on any rank. Every rank must call it."""
        while self.phase is not None:
            if self.task is not None:
                # Waits. Its error, if there is one, is reported by exchange().
                self.task.exception()
            # For whoever calls exchange() next.
            self.others |= self.exchange()
