"""Find and load a trained model: from an export, a checkpoint or a run folder. Needs no DeepSpeed, runs no code.

Averages of any relative length are synthesised from the power-function averages of a run; the mathematics is that of
checkpoint/profiles.py.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fdtrain import distributed, files
from fdtrain.checkpoint import soundness, store
from fdtrain.checkpoint.fragments import AVERAGE, FragmentReader, power_average
from fdtrain.checkpoint.profiles import LONGEST, SHORTEST, Fit, fit
from fdtrain.console import phase
from fdtrain.errors import UserError
from fdtrain.evaluation.wording import counted
from fdtrain.networks.model import Model, ModelSpec, load_weights

SPEC_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Of an export."""
EXPORT_FILE = "export.json"
"""Of an export: its form, and size and SHA-256 of its files. Earlier versions wrote none."""
FOLDER = "evaluation"
"""The folder of a run's results, and of the partial results of unfinished ones."""
MAX_ERROR = 0.05
"""Of the profile (:class:`fdtrain.checkpoint.profiles.Fit`); an average with more is not the one of its name."""

logger = logging.getLogger(__name__)


def find_model(path: str | Path) -> tuple[Path, Path]:
    """Description and averaged weights of the model that ``path`` stands for; of a run, its newest checkpoint's.

    The weights are a file, or the folder of a checkpoint, whose parts hold them.

    Raises:
        UserError: there is no model, or the checkpoint is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}. Give a run, a checkpoint or an export.")
    if (folder / SPEC_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        _check_export(folder)
        return folder / SPEC_FILE, folder / WEIGHTS_FILE
    if (folder / EXPORT_FILE).is_file():
        raise UserError(f"{folder} is an export in another form. Load one of --format safetensors, or the run itself.")
    if (folder / store.CHECKPOINTS).is_dir():
        newest = store.newest_step(folder)
        if newest is None:
            raise UserError(f"{folder} holds no checkpoint yet. Wait for the first, or look at checkpoint.every.")
        candidates = [newest, *(other for other in store.committed(folder) if other != newest)]
    elif (folder / store.MODEL_FILE).is_file():
        candidates = [folder]
    else:
        raise UserError(f"{path} holds no model: it is no run with a checkpoint, no checkpoint, and no export.")
    sound, faults = soundness.newest(candidates)
    if sound is None:
        raise UserError(f"{path} is damaged: {'; '.join(faults)}. Take another checkpoint.")
    if faults:
        logger.warning("damaged: %s; taking %s", "; ".join(faults), sound.name)
    return sound / store.MODEL_FILE, sound


def _check_export(folder: Path) -> None:
    """Raise UserError if a file was changed since it was exported."""
    record = folder / EXPORT_FILE
    if not record.is_file():
        return
    try:
        entries = json.loads(record.read_text())["files"]
        for name in (SPEC_FILE, WEIGHTS_FILE):
            if store.manifest_entry(folder / name) != {key: entries[name][key] for key in ("bytes", "sha256")}:
                raise UserError(f"{folder / name} was changed since it was exported. Export the model again.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged ({type(error).__name__}: {error}). Export the model again.") from error


def add_length(parser: argparse.ArgumentParser) -> None:
    """The option ``--ema-length`` of commands that load a model."""
    parser.add_argument(
        "--ema-length",
        type=float,
        metavar="LENGTH",
        help="the average of this relative length, such as 0.1, of a run with ema.lengths (default: that of ema.decay)",
    )


def read_model(spec_file: Path, weights: Path, ema_length: float | None = None) -> Model:
    """:func:`load_model` of what :func:`find_model` has found."""
    spec = ModelSpec.load(spec_file)
    if ema_length is not None:
        return TrackedAverages(weights, spec).model(ema_length)
    if weights.is_file():
        return load_weights(spec, weights)
    if weights.parent.name == store.AVERAGES:
        raise UserError(f"{weights} is a snapshot of power-function averages. Choose one of them with --ema-length.")
    model = Model(spec).eval().requires_grad_(False)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.load_state_dict(store.open_parts(weights).whole(AVERAGE, shapes))
    return model


@dataclass(frozen=True)
class ModelOrigin:
    """The model that is evaluated: its folder, its weights' checksum, its run's folder and step where there are, and
    the relative length of its average, if one was chosen."""

    folder: Path
    sha256: str
    run: Path | None
    step: int | None
    ema_length: float | None = None

    @property
    def results(self) -> Path | None:
        """Folder of the results, of a run."""
        return self.run / FOLDER if self.run else None

    @property
    def home(self) -> Path:
        """Folder of what is saved with the model: the run's, where there is one."""
        return self.run or self.folder

    def result_file(self, kind: str, of: str, first: int | None = None) -> Path | None:
        """The result of that kind, of a run. Those of a chosen average do not replace those of the run's own.

        Args:
            of: the split or the features, named by a file from elsewhere.
            first: the number of images, if it is not of all.
        """
        chosen = "" if self.ema_length is None else f"_ema{self.ema_length:g}"
        return self.results / f"{stem(kind, of, first)}{chosen}.json" if self.results else None

    def identity(self) -> dict[str, Any]:
        """The keys that every result has of its model."""
        chosen = {} if self.ema_length is None else {"ema_length": self.ema_length}
        return {"model": str(self.folder), "weights_sha256": self.sha256, "step": self.step, **chosen}


def stem(kind: str, of: str, first: int | None = None) -> str:
    """What the file of a result is called, as :meth:`ModelOrigin.result_file` is asked for it."""
    return f"{kind}_{files.as_name(of)}" + ("" if first is None else f"_first{first}")


def open_model(path: str | Path, ema_length: float | None = None, shared: bool = False) -> tuple[Model, ModelOrigin]:
    """What ``path``, a run, a checkpoint or an export, stands for now: a run's newest checkpoint may change later.

    The model has its averaged weights, is on the CPU, in evaluation mode and float32.

    Args:
        ema_length: relative length of the average, of a run with power-function averages; None: that of the
            run's ``ema.decay``.
        shared: every process of the launch calls this, and opens what the first one finds.

    Raises:
        UserError: there is no model, its files are broken, or there is no average of that length.
    """
    files_of_model = distributed.found_by_first(partial(find_model, path)) if shared else find_model(path)
    with phase(f"opening the model of {path}"):
        model = read_model(*files_of_model, ema_length)
    folder = files_of_model[0].parent
    number = folder.name.removeprefix("step_")
    is_run = (Path(path) / "checkpoints").is_dir()
    step = int(number) if number.isdigit() else None
    return model, ModelOrigin(folder, weights_digest(model), Path(path) if is_run else None, step, ema_length)


def load_model(path: str | Path, ema_length: float | None = None) -> Model:
    """:func:`open_model`, the model alone."""
    return open_model(path, ema_length)[0]


def weights_digest(model: Model) -> str:
    """SHA-256 of names, shapes and float32 values: the same in a checkpoint of any number of ranks and an export."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {list(weight.shape)}\n".encode())
        digest.update(weight.contiguous().numpy())
    return digest.hexdigest()


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
        if folder.is_file():
            raise UserError(f"{folder.parent} is an export and has a single average. Take the run that it came from.")
        self.spec, self.step, self.tracked = spec, store.read_state(folder).step, list[Tracked]()
        snapshots = reversed(store.committed(folder.parent.parent, store.AVERAGES))
        for path in (folder, *(path for path in snapshots if store.step_of(path) < self.step)):
            if path != folder:
                _check_snapshot(path, spec)
            parts = store.open_parts(path)
            if any(not SHORTEST <= length <= LONGEST for length in parts.lengths()):
                raise UserError(f"{path} holds averages of impossible lengths ({parts.lengths()}). Delete it.")
            step = self.step if path == folder else store.step_of(path)
            self.tracked += [Tracked(step, length, parts) for length in parts.lengths()]
            if not self.tracked:
                raise UserError(
                    f"{folder} has no averages to choose a length from: the run was trained without ema.lengths. "
                    "Only the average of its ema.decay is there."
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
            steps, tracked = {each.step for each in self.tracked}, ", ".join(f"{each:g}" for each in self.lengths)
            served = self.served(np.geomspace(SHORTEST, LONGEST, 100).tolist() + self.lengths)
            raise UserError(
                f"the average of relative length {length:g} at step {self.step} cannot be had from "
                f"{len(self.tracked)} tracked averages (of length {tracked}, at {counted(len(steps), 'step')}): "
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


def _check_snapshot(folder: Path, spec: ModelSpec) -> None:
    reason = soundness.fault(folder)
    if reason is None and (differences := ModelSpec.load(folder / store.MODEL_FILE).differences(spec)):
        reason = f"it is of another model: {'; '.join(differences)}"
    if reason is not None:
        raise UserError(
            f"{folder} cannot be used: {reason}. Restore it, or delete it and go on with the other snapshots."
        )
