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
SHOW_SECONDS = 5.0
"""Between two looks at the runs' logs."""
PATIENCE = 60.0
"""Seconds that a run of an interrupted comparison has to end by itself, and processes that were asked to."""
EVALUATION_SHARE = 0.25
"""Of a run's time, as the progress counts it."""

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
        progress = Progress(self.runs, waiting)
        try:
            while waiting or any(busy):
                for i, slot in enumerate(busy):
                    if slot is None and waiting:
                        run = waiting.pop(0)
                        slot = busy[i] = Slot(run, run.commands(self.processes))
                    if slot is not None and self._advance(slot, i):
                        busy[i] = None
                        progress.finish(slot.run, self.failures)
                progress.show([slot.run for slot in busy if slot], self.failures)
                time.sleep(INTERVAL)
        finally:
            _end([slot.process for slot in busy if slot and slot.process])
            progress.bar.close()
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


class Progress:
    """A bar in runs, of which those under way count in part; without a terminal a line for each run that ends."""

    def __init__(self, runs: list[PlannedRun], waiting: list[PlannedRun]):
        self.total, self.ended, self.shown = len(runs), len(runs) - len(waiting), 0.0
        self.shares = {run.name: self._share(run) for run in waiting}
        self.bar = tqdm(
            total=self.total,
            initial=self.ended + sum(self.shares.values()),
            bar_format="compare: {desc} |{bar:24}| {remaining} left",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    @staticmethod
    def _share(run: PlannedRun) -> float:
        evaluation = EVALUATION_SHARE if run.settings is not None else 0.0
        return (1 - evaluation) * min(1.0, run.progress() / run.steps)

    def finish(self, run: PlannedRun, failures: dict[str, str]) -> None:
        self.ended += 1
        self.shares.pop(run.name, None)
        if run.name in failures:
            logger.warning("%s failed: %s", run.name, failures[run.name])
        if self.bar.disable:
            logger.info("%s", self.line([], failures))

    def show(self, running: list[PlannedRun], failures: dict[str, str]) -> None:
        now = time.monotonic()
        if self.bar.disable or now - self.shown < SHOW_SECONDS:
            return
        self.shown = now
        self.shares |= {run.name: self._share(run) for run in running}
        self.bar.set_description_str(self.line(running, failures), refresh=False)
        self.bar.n = self.ended + sum(self.shares.values())
        self.bar.refresh()

    def line(self, running: list[PlannedRun], failures: dict[str, str]) -> str:
        parts = [f"{self.ended} of {self.total} runs"]
        if failures:
            parts.append(f"{len(failures)} failed")
        return ", ".join([*parts, *(f"{run.name} {self.shares[run.name]:.0%}" for run in running)])


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
