"""Runs side by side: their commands one after another in each slot, until every run is finished or has failed."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fdtrain import distributed, lock
from fdtrain.comparison.runs import PlannedRun, threads
from fdtrain.data.workers import signalled_at_parents_end
from fdtrain.errors import UserError, excerpt

INTERVAL = 0.5
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds that a run of an interrupted comparison has to end by itself, and processes that were asked to."""

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """A place for one run at a time: what it is doing there, with its output in a file of its own."""

    run: PlannedRun
    commands: list[list[str]]
    process: subprocess.Popen | None = None

    @property
    def log(self) -> Path:
        return self.run.folder / "output.txt"

    def start(self, environment: dict[str, str]) -> None:
        """The next command."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.commands.pop(0),
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is answered here: a second signal would end a run that is saving.
                start_new_session=True,
                # However this process ends, its runs save and end. Its main thread starts them.
                preexec_fn=partial(signalled_at_parents_end, signal.SIGTERM),
            )


@dataclass
class Schedule:
    """Runs in their order over ``slots`` of ``processes`` each; ``failures`` are the reasons by the run's name."""

    runs: list[PlannedRun]
    slots: int
    processes: int
    failures: dict[str, str] = field(default_factory=dict)

    def work(self) -> dict[str, str]:
        """Finish every run that can be finished; returns the reasons of those that failed.

        Raises:
            UserError: another comparison is working on one of the runs.
            KeyboardInterrupt: once the processes have ended.
        """
        waiting = [run for run in self.runs if not run.finished()]
        for run in waiting:
            _wait_until_free(run.folder)
        busy: list[Slot | None] = [None] * self.slots
        total, ended = len(self.runs), len(self.runs) - len(waiting)
        bar = tqdm(total=total, initial=ended, desc="compare", unit="run", disable=not sys.stderr.isatty())
        try:
            while waiting or any(busy):
                for i, slot in enumerate(busy):
                    if slot is None and waiting:
                        run = waiting.pop(0)
                        slot = busy[i] = Slot(run, run.commands(self.processes))
                    if slot is not None and self._advance(slot, i):
                        busy[i] = None
                        bar.update()
                        if slot.run.name in self.failures:
                            logger.warning("%s failed: %s", slot.run.name, self.failures[slot.run.name])
                        if bar.disable:
                            ended += 1
                            failed = f", {len(self.failures)} failed" if self.failures else ""
                            logger.info("%d of %d runs%s", ended, total, failed)
                time.sleep(INTERVAL)
        finally:
            _end([slot.process for slot in busy if slot and slot.process])
            bar.close()
        return self.failures

    def _advance(self, slot: Slot, place: int) -> bool:
        """Start what is next; whether the run is finished or has failed."""
        if slot.process is not None:
            code = slot.process.poll()
            if code is None:
                return False
            if code != 0:
                self.failures[slot.run.name] = reason(slot.log, code)
                return True
        if not slot.commands:
            return True
        slot.start(threads(self.slots, self.processes) | devices(place, self.processes))
        return False


def devices(slot: int, processes: int) -> dict[str, str]:
    """The environment that gives each slot GPUs of its own; nothing without GPUs."""
    if not distributed.on_gpu():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[slot * processes : (slot + 1) * processes])}


def reason(log: Path, code: int) -> str:
    """Why a command has failed, from the end of its output."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.partition("error: ")[2] for line in lines if line.startswith("fdtrain: error")]
    return excerpt(told[-1] if told else f"exit code {code}: {lines[-1] if lines else 'no output'}")


def _wait_until_free(folder: Path) -> None:
    """A run that an interrupted comparison left behind saves and ends by itself."""
    deadline = time.monotonic() + PATIENCE
    while (folder / lock.FILE).exists():
        try:
            with lock.held(folder):
                return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(INTERVAL)


def _end(processes: list[subprocess.Popen]) -> None:
    """Ask the processes to save and end, and wait for them."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
