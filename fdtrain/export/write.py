"""Export a model: one folder in one form, compared with the model, with a card and a record of its checksums."""

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fdtrain import __version__, files, lock
from fdtrain.checkpoint.store import manifest_entry
from fdtrain.errors import EXTRAS, UserError, excerpt, missing
from fdtrain.evaluation import samples
from fdtrain.evaluation.load import EXPORT_FILE, SPEC_FILE, WEIGHTS_FILE, ModelOrigin, open_model
from fdtrain.export import agreement, card
from fdtrain.networks.model import CODE_FOLDER, Model

FORMATS = {
    "safetensors": "weights",
    "diffusers": "diffusers_folder",
    "onnx": "onnx_graph",
    "torch_export": "torch_export",
}
"""By name, the module of this folder that has ``write(model, folder)`` and ``LOADING``, the text of the card."""
VERSION = 1
"""Of the record."""
UNKNOWN = "unknown"
"""The licence, unless one is given."""


def export(
    path: str | Path,
    destination: str | Path,
    form: str = "safetensors",
    ema_length: float | None = None,
    **options: Any,
) -> float:
    """:func:`write` of the averaged weights of a run, a checkpoint or an export, as :func:`open_model` has them."""
    return write(*open_model(path, ema_length), destination, form, **options)


def write(
    model: Model,
    origin: ModelOrigin,
    destination: str | Path,
    form: str = "safetensors",
    licence: str = UNKNOWN,
    opset: int | None = None,
    source: str | None = None,
) -> float:
    """Write a model in a form that others read: one folder, complete or absent. Returns the largest difference of its
    field to the model's (:mod:`agreement`).

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
    with _new_folder(destination) as folder:
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
        if (origin.home / samples.GRIDS).is_file():
            shutil.copyfile(origin.home / samples.GRIDS, folder / samples.GRIDS)
        labels = ", labels (N,) int64" if model.spec.classes else ""
        loading = writer.LOADING.replace("INTERVAL", card.interval(model.spec)).replace("FOLDER", destination.name)
        if form == "safetensors" and model.spec.code:
            copies = ", ".join(f'"{destination.name}/{CODE_FOLDER}/{name}"' for name in model.spec.code)
            loading = loading.replace('")', f'", allow_code=[{copies}])  # executes them: read them first', 1)
        loading = loading.replace("; LABELS", labels).replace("LABELS", labels)
        name = destination.resolve().name
        (folder / "README.md").write_text(card.text(model, origin, record, loading, name, licence), encoding="utf-8")
        _write_record(folder, record)
    return difference


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


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of ``destination`` when all is written, in place of an earlier export.
    Raises UserError: it cannot be written, another export to it is under way, or something else is there."""
    temporary = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}"
    try:
        there = {path.name for path in destination.iterdir()} if destination.exists() else set()
        if there and EXPORT_FILE not in there and not {SPEC_FILE, WEIGHTS_FILE} <= there:
            raise UserError(f"{destination} holds something else than an export. Choose another folder.")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with lock.held(destination, lock=destination.with_name(f".{destination.name}.lock")):
            # What exports to this place that were killed have left.
            left = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}(\.replaced)?")
            for path in destination.parent.iterdir():
                if left.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            replaced = temporary.with_name(f"{temporary.name}.replaced")
            if destination.exists():
                destination.rename(replaced)
            temporary.rename(destination)
            files.sync(destination.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write into {destination} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what the export is, with size and checksum of every file that is there by now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): manifest_entry(path) for path in paths}
    for path in paths:
        files.sync(path)
    files.write_text(folder / EXPORT_FILE, json.dumps({**record, "files": entries}, indent=1) + "\n")
