"""Find and load a trained model: from an export, a checkpoint or a run folder. Needs no DeepSpeed, runs no code."""

import argparse
import hashlib
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fdtrain import distributed, files
from fdtrain.checkpoint import soundness, store
from fdtrain.checkpoint.fragments import AVERAGE
from fdtrain.console import phase
from fdtrain.errors import UserError
from fdtrain.evaluation.synthesis import TrackedAverages
from fdtrain.networks.model import Model, ModelSpec, load_weights

SPEC_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Of an export."""
EXPORT_FILE = "export.json"
"""Of an export: its form, and size and SHA-256 of its files. Earlier versions wrote none."""
FOLDER = "evaluation"
"""The folder of a run's results, and of the partial results of unfinished ones."""

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
    if (folder / "checkpoints").is_dir():
        folder = _newest(folder)
    elif not (folder / store.MODEL_FILE).is_file():
        raise UserError(f"{path} holds no model: it is no run with a checkpoint, no checkpoint, and no export.")
    elif fault := soundness.fault(folder):
        raise _damaged(folder, fault)
    return folder / store.MODEL_FILE, folder


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


def _newest(run: Path) -> Path:
    """The newest sound checkpoint of a run."""
    newest = store.newest_step(run)
    if newest is None:
        raise UserError(f"{run} holds no checkpoint yet. Wait for the first, or look at checkpoint.every.")
    fault = soundness.fault(newest)
    if fault is None:
        return newest
    sound, _ = soundness.newest(store.committed(run))
    if sound is None:
        raise _damaged(newest, fault)
    logger.warning("%s is damaged (%s); taking %s", newest, fault, sound.name)
    return sound


def _damaged(folder: Path, fault: str) -> UserError:
    return UserError(f"{folder} is damaged: {fault}. Take another checkpoint.")


def add_length(parser: argparse.ArgumentParser) -> None:
    """The option ``--ema-length`` of commands that load a model."""
    parser.add_argument(
        "--ema-length",
        type=float,
        metavar="LENGTH",
        help="the average of this relative length, such as 0.1, of a run with ema.lengths (default: that of ema.decay)",
    )


def load_model(path: str | Path, ema_length: float | None = None) -> Model:
    """The model with its averaged weights, on the CPU, in evaluation mode, float32.

    Args:
        ema_length: relative length of the average, of a run with power-function averages (synthesis.py); None: that
            of the run's ``ema.decay``.

    Raises:
        UserError: there is no model, its files are broken, or there is no average of that length.
    """
    return read_model(*find_model(path), ema_length)


def read_model(spec_file: Path, weights: Path, ema_length: float | None = None) -> Model:
    """:func:`load_model` of what :func:`find_model` has found."""
    spec = ModelSpec.load(spec_file)
    if ema_length is not None:
        averages = open_averages(spec_file, weights)
        logger.info("%s", averages.describe(ema_length))
        return averages.model(ema_length)
    if weights.is_file():
        return load_weights(spec, weights)
    if weights.parent.name == store.AVERAGES:
        raise UserError(f"{weights} is a snapshot of power-function averages. Choose one of them with --ema-length.")
    model = Model(spec).eval().requires_grad_(False)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.load_state_dict(store.open_parts(weights).whole(AVERAGE, shapes))
    return model


def open_averages(spec_file: Path, weights: Path) -> TrackedAverages:
    """The power-function averages up to the step of what :func:`find_model` has found.

    Raises:
        UserError: there are none, or a snapshot is damaged.
    """
    if weights.is_file():
        raise UserError(f"{weights.parent} is an export and has a single average. Take the run that it came from.")
    return TrackedAverages(weights, ModelSpec.load(spec_file))


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

    Args:
        ema_length: of the average, as for :func:`load_model`.
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


def weights_digest(model: Model) -> str:
    """SHA-256 of names, shapes and float32 values: the same in a checkpoint of any number of ranks and an export."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {list(weight.shape)}\n".encode())
        digest.update(weight.contiguous().numpy())
    return digest.hexdigest()
