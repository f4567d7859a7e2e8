"""Export a model: one folder in one form, compared with the model, with a card and a record of its checksums."""

import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fdtrain import __version__
from fdtrain.errors import EXTRAS, UserError, excerpt, missing
from fdtrain.evaluation import grids
from fdtrain.evaluation.load import ModelOrigin, open_model
from fdtrain.export import agreement, card
from fdtrain.export.folder import VERSION, new_folder, write_record
from fdtrain.networks.model import CODE_FOLDER, Model

FORMATS = {
    "safetensors": "weights",
    "diffusers": "diffusers_folder",
    "onnx": "onnx_graph",
    "torch_export": "torch_export",
}
"""By name, the module of this folder that has ``write(model, folder)`` and ``LOADING``, the text of the card."""
UNKNOWN = "unknown"
"""The licence, unless one is given."""


@dataclass(frozen=True)
class Exported:
    """The finished folder, and the largest difference of its field to the model's (:mod:`agreement`)."""

    folder: Path
    largest_difference: float


def export(
    path: str | Path,
    destination: str | Path,
    form: str = "safetensors",
    licence: str = UNKNOWN,
    opset: int | None = None,
    ema_length: float | None = None,
) -> Exported:
    """Write the averaged weights of a run, a checkpoint or an export in a form that others read.

    Args:
        ema_length: of the average, as for :func:`fdtrain.load`; the other arguments are those of :func:`write`.

    Raises:
        UserError: nothing to export, or what :func:`write` raises.
    """
    return write(*open_model(path, ema_length), destination, form, licence, opset)


def write(
    model: Model,
    origin: ModelOrigin,
    destination: str | Path,
    form: str = "safetensors",
    licence: str = UNKNOWN,
    opset: int | None = None,
    source: str | None = None,
) -> Exported:
    """Write a model in a form that others read.

    Args:
        destination: a new folder, or an earlier export, which is replaced when the new one is complete.
        form: a name in :data:`FORMATS`.
        licence: what the card says, as the Hugging Face hub names licences.
        opset: version of ONNX's operators; None: a usual one.
        source: where the weights are from, if not from a run.

    Raises:
        UserError: a package of the form is not installed, the export differs from the model, or the folder cannot be
            written.
    """
    if opset is not None and form != "onnx":
        raise UserError(f"--opset: only --format onnx has one, not {form}.")
    writer, destination = _writer(form), Path(destination)
    options = {"opset": opset} if form == "onnx" else {}
    with new_folder(destination) as folder:
        try:
            difference = writer.write(model, folder, **options)
        except Exception as error:
            if isinstance(error, UserError | OSError) or not model.spec.code:
                raise
            # What is in a user's network cannot be foreseen.
            names = ", ".join(model.spec.code)
            raise UserError(f"the model's code ({names}) has no form {form}: {excerpt(error)}.") from error
        record = {
            "version": VERSION,
            "format": form,
            "weights_sha256": origin.sha256,
            "step": origin.step,
            "ema_length": origin.ema_length,
            "source": source,
            "largest_difference": difference,
            "tolerance": agreement.TOLERANCE,
            "versions": {"fdtrain": __version__, **_versions()},
        }
        if (origin.home / grids.FILE).is_file():
            shutil.copyfile(origin.home / grids.FILE, folder / grids.FILE)
        labels = ", labels (N,) int64" if model.spec.classes else ""
        loading = writer.LOADING.replace("INTERVAL", card.interval(model.spec)).replace("FOLDER", destination.name)
        if form == "safetensors" and model.spec.code:
            copies = ", ".join(f'"{destination.name}/{CODE_FOLDER}/{name}"' for name in model.spec.code)
            loading = loading.replace('")', f'", allow_code=[{copies}])  # executes them: read them first', 1)
        loading = loading.replace("; LABELS", labels).replace("LABELS", labels)
        name = destination.resolve().name
        (folder / "README.md").write_text(card.text(model, origin, record, loading, name, licence), encoding="utf-8")
        write_record(folder, record)
    return Exported(destination, difference)


def _writer(form: str) -> Any:
    if form not in FORMATS:
        raise UserError(f"--format: there is no {form!r}; there are {', '.join(FORMATS)}.")
    try:
        return import_module(f"fdtrain.export.{FORMATS[form]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name not in EXTRAS["export"]:
            raise
        raise UserError(missing(error.name)) from error


def _versions() -> dict[str, str]:
    """Of the packages that an export may have been written by."""
    found = {}
    for name in ("torch", *EXTRAS["export"]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
