"""One run of a comparison: its folder, the commands that train and evaluate it, and how far it is."""

import json
import logging
import os
import shutil
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fdtrain
from fdtrain import files, plugins
from fdtrain.checkpoint import soundness, store
from fdtrain.comparison.definition import Comparison, run_name
from fdtrain.config import Config, dump_config
from fdtrain.errors import UserError
from fdtrain.evaluation import result, run_folder
from fdtrain.evaluation.load import FOLDER, stem
from fdtrain.evaluation.run_folder import RunFolder

SETTINGS = "comparison.json"
"""Of a run's results: what it was evaluated with, written when all of it is there."""
OF_LIKELIHOODS = frozenset({"draws", "ode_images", "ode_tolerance", "ode_solver"})
"""The settings that neither the samples nor the noise of training depend on."""
MAIN = Path(fdtrain.__file__).with_name("main.py")
UNUSABLE = "checkpoints.unusable"
"""Of a run: its checkpoints, where it had none to go on from."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """``config`` is resolved, and written to ``config_file``; ``settings`` are those of the evaluation.

    ``settings`` None: it is trained only.
    """

    variant: str
    seed: int
    config: Config
    config_file: Path
    settings: dict[str, Any] | None

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
            script = [str(MAIN), "--config", str(self.config_file), "--resume", "auto"]
            commands.append([*_launcher(processes), *script, *plugins.as_options()])
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
    return {"checkpoint": newest and store.sha256(newest / store.MANIFEST), "settings": settings}


def recorded(folder: Path, settings: dict[str, Any], without: frozenset[str] = frozenset()) -> bool:
    """Whether the last evaluation was of the newest checkpoint, and with these settings apart from some keys."""
    try:
        stored, current = json.loads((folder / FOLDER / SETTINGS).read_text()), record(folder, settings)
        for found in (stored, current):
            found["settings"] = {key: value for key, value in found["settings"].items() if key not in without}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return stored == current


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
    file = comparison.folder / "configs" / f"{run_name(variant, seed)}.yaml"
    return PlannedRun(variant, seed, config, file, settings)


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    return [deepspeed, "--num_accelerators", str(processes), "--master_port", str(_free_port())]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def threads(slots: int, processes: int) -> dict[str, str]:
    """The environment that shares the cores among the processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // (slots * processes))))}
