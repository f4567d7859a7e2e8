"""The runs of a comparison: the commands that train and evaluate each, how far it is, and all of them side by side."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fdtrain import distributed, files, lock, plugins
from fdtrain.checkpoint import soundness, store
from fdtrain.comparison.definition import Comparison
from fdtrain.config import Config, dump_config
from fdtrain.data.workers import signalled_at_parents_end
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation import result, run_folder
from fdtrain.evaluation.load import FOLDER, stem
from fdtrain.evaluation.run_folder import RunFolder

SETTINGS = "comparison.json"
"""Of a run's results: what it was evaluated with, written when all of it is there."""
UNUSABLE = "checkpoints.unusable"
"""Of a run: its checkpoints, where it had none to go on from."""
INTERVAL = 0.5
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds that a run of an interrupted comparison has to end by itself, and processes that were asked to."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """``config`` is resolved; ``settings`` are those of the evaluation, None: it is trained only."""

    variant: str
    seed: int
    config: Config
    settings: dict[str, Any] | None

    @property
    def config_file(self) -> Path:
        return self.config.output.parent / "configs" / f"{self.name}.yaml"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def steps(self) -> int:
        return self.config.training.steps

    def trained(self) -> bool:
        """Whether the checkpoint of the last step is there and sound."""
        newest = store.newest_step(self.folder) if self.folder.is_dir() else None
        return newest is not None and store.step_of(newest) >= self.steps and soundness.fault(newest) is None

    def evaluated(self) -> bool:
        """Whether all results are there, of the last step's checkpoint and with these settings."""
        assert self.settings is not None
        found = result_files(self.folder, self.config, self.settings).values()
        return recorded(self.folder, self.settings) and all(step_of(path) == self.steps for path in found)

    def results(self) -> RunFolder:
        """The run's folder with the results of this comparison alone, once it is finished."""
        assert self.settings is not None
        folder, own = run_folder.read(self.folder), result_files(self.folder, self.config, self.settings).values()
        return replace(folder, results={path: found for path, found in folder.results.items() if path in own})

    def finished(self) -> bool:
        return self.trained() and (self.settings is None or self.evaluated())

    def commands(self, processes: int) -> list[list[str]]:
        """What remains to be done, in order: the ordinary training command, and the evaluation."""
        commands = []
        if not self.trained():
            self._set_unusable_aside()
            launched = ["--processes", str(processes)] if processes > 1 else []
            words = ["train", *launched, "--config", str(self.config_file), "--resume", "auto"]
            commands.append([sys.executable, "-m", "fdtrain", *words, *plugins.as_options()])
        if self.settings is not None and not self.evaluated():
            module = [sys.executable, "-m", "fdtrain.comparison.evaluate", str(self.folder)]
            commands.append([*module, json.dumps(self.settings), *plugins.as_options()])
        return commands

    def _set_unusable_aside(self) -> None:
        """Checkpoints of which none can be used make room for those of a new training."""
        path, faults = soundness.newest(store.committed(self.folder))
        if path is None and faults:
            logger.warning("%s is trained again: %s. They are in %s", self.name, "; ".join(faults), UNUSABLE)
            shutil.rmtree(self.folder / UNUSABLE, ignore_errors=True)
            (self.folder / store.CHECKPOINTS).rename(self.folder / UNUSABLE)

    def write_config(self) -> None:
        files.write_text(self.config_file, dump_config(self.config))


def record(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the results of a run are of: its newest checkpoint, and the settings of the evaluation."""
    newest = store.newest_step(folder)
    return {"checkpoint": newest and files.sha256(newest / store.MANIFEST), "settings": settings}


def recorded(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the last evaluation was of the newest checkpoint, and with these settings."""
    try:
        return json.loads((folder / FOLDER / SETTINGS).read_text()) == record(folder, settings)
    except (OSError, ValueError):
        return False


def step_of(path: Path) -> int | None:
    """The training step that a result is of; None if it cannot be read."""
    try:
        found = result.read(path)
    except UserError:
        return None
    return found and found.step


def result_files(folder: Path, config: Config, settings: dict[str, Any]) -> dict[str, Path]:
    """The results of a run, by what is in them: ``bound``, ``ode`` (of as many images as asked for) and ``noise``."""
    results, split, ode_images = folder / FOLDER, config.data.test_split, settings["ode_images"]
    assert split is not None
    found = {"bound": results / f"{stem('nll', split)}.json", "noise": results / "noise.json"}
    if ode_images:
        whole = ode_images >= settings["images"]
        found["ode"] = found["bound"] if whole else results / f"{stem('nll', split, ode_images)}.json"
    return found


def planned_run(
    comparison: Comparison, variant: str, seed: int, settings: dict[str, Any] | None, **training: Any
) -> PlannedRun:
    config = comparison.config(variant, seed, **training)
    sampler = comparison.samplers.get(variant)
    if settings is not None and sampler is not None:
        settings = {**settings, "sampler": sampler.model_dump(mode="json")}
    return PlannedRun(variant, seed, config, settings)


def threads(slots: int, processes: int) -> dict[str, str]:
    """The environment that shares the cores among the processes."""
    own = max(1, len(os.sched_getaffinity(0)) // (slots * processes))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(own))}


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
