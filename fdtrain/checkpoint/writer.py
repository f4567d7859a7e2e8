"""Checkpoints written while training goes on: the ranks' own threads write, and all agree when they have."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import Fragment, part_name, write_part
from fdtrain.errors import UserError
from fdtrain.networks.model import ModelSpec
from fdtrain.resilience.consensus import Consensus

WRITING, FAILED = "checkpoint is being written", "checkpoint failed"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay, and how many in a row may fail to be written."""

    last: int
    every: int | None
    failures: int


class CheckpointWriter:
    """Saves one checkpoint at a time; see :meth:`begin`.

    A save has two phases: every rank writes its part; when all agree that all have, rank 0 commits the folder.
    The consensus costs the step nothing (resilience/consensus.py). A phase that fails anywhere ends the save
    everywhere: what was there before stays, and the run goes on.

    Args:
        folder: the run's.
        consensus: knows the flags :data:`WRITING` and :data:`FAILED`.
        say: puts a line on the console.
    """

    def __init__(self, folder: Path, keep: Retention, consensus: Consensus, say: Callable[[str], None]):
        self.folder, self.keep, self.consensus, self.say = folder, keep, consensus, say
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.buffers: list[Tensor] = []
        self.phase: str | None = None
        self.task: Future | None = None
        self.told = 0
        self.failures = 0
        self.others: frozenset[str] = frozenset()
        """What was agreed on while :meth:`finish` waited."""
        self.last: Path | None = None
        """The newest checkpoint that this run wrote or took up."""

    def begin(self, fragments: list[Fragment], spec: ModelSpec, config: str, state: store.State) -> float:
        """Copy the state aside and start to write it. Every rank must call it.

        Returns:
            Seconds for which training stood still.
        """
        started = time.perf_counter()
        self.finish()
        self.aside = self.folder / "checkpoints" / store.aside_name(state.step)
        copies, aside, first = self._copy(fragments), self.aside, distributed.rank() == 0

        def write() -> None:
            aside.mkdir(parents=True, exist_ok=True)
            if first:
                store.describe(aside, spec, config, state)
            path = aside / part_name(distributed.rank())
            store.note_digest(path, write_part(path, copies))

        self.names = [part_name(rank) for rank in range(distributed.world_size())]
        self._enter("parts", write)
        return time.perf_counter() - started

    def _copy(self, fragments: list[Fragment]) -> list[Fragment]:
        """Fragments on the CPU, in buffers that are made once."""
        if not self.buffers:
            pin = any(f.tensor.is_cuda for f in fragments)
            self.buffers = [torch.empty(len(f.tensor), pin_memory=pin) for f in fragments]
        for buffer, fragment in zip(self.buffers, fragments, strict=True):
            buffer.copy_(fragment.tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [Fragment(f.kind, f.parameter, f.start, b) for f, b in zip(fragments, self.buffers, strict=True)]

    def _enter(self, phase: str, work: Callable[[], None] | None) -> None:
        self.phase, self.task, self.told = phase, self.thread.submit(work) if work else None, 0

    def exchange(self) -> frozenset[str]:
        """Once a step, on every rank: go on with what is being written, and learn what else all have agreed on.

        Raises:
            UserError: too many saves in a row have failed.
        """
        self._tell()
        agreed = self.consensus.exchange()
        others, self.others = self.others | agreed, frozenset()
        self._heed(agreed)
        return others

    def _tell(self) -> None:
        """Say how this rank's work stands."""
        if self.phase is None:
            return
        self.told += 1
        if self.task is not None and not self.task.done():
            self.consensus.raise_flag(WRITING)
        elif self.task is not None and self.task.exception() is not None:
            self.consensus.raise_flag(FAILED)

    def _heed(self, agreed: frozenset[str]) -> None:
        """Go on when all are through."""
        # What was agreed had been told an exchange earlier.
        if self.phase is None or self.told < 2 or WRITING in agreed:
            return
        if FAILED in agreed:
            self._fail()
        elif self.phase == "parts":
            self._enter("commit", self._commit if distributed.rank() == 0 else None)
        else:
            self.phase, self.task, self.failures = None, None, 0
            self.last = self.aside.with_name(self.aside.name.removeprefix("."))

    def _commit(self) -> None:
        store.retain(store.commit(self.aside, self.names), self.keep.last, self.keep.every)

    def _fail(self) -> None:
        error = self.task.exception() if self.task is not None else None
        self.phase, self.task = None, None
        self.failures += 1
        if distributed.rank() == 0:
            store.clean(self.folder)
        if error is not None and not isinstance(error, OSError):
            raise error
        if error is not None and distributed.rank() != 0:
            print(f"fdtrain: rank {distributed.rank()} cannot write its part ({error}).", file=sys.stderr, flush=True)
        kept = f"the newest is still {self.last.name}" if self.last else "there is none yet"
        reason = f" ({error})" if error is not None else ""
        what = f"the checkpoint {self.aside.name.removeprefix('.')} could not be written{reason}; {kept}"
        if self.failures > self.keep.failures:
            raise UserError(
                f"{what}. checkpoint.max_failures is {self.keep.failures}: make room in {self.folder}, or mend the "
                "disk, and go on with --resume auto."
            )
        self.say(f"fdtrain: warning: {what}. Training goes on ({self.failures} of {self.keep.failures} failures).")

    def finish(self) -> None:
        """Wait until nothing is being written, on any rank. Every rank must call it."""
        while self.phase is not None:
            if self.task is not None:
                # Its error, if there is one, is told to all.
                self.task.exception()
            # For whoever calls exchange() next.
            self.others |= self.exchange()
