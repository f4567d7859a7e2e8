"""Checkpoints as they lie on the disk (docs/checkpoints.md).

    checkpoints/step_00001000/part_00000.safetensors   weights, average, moments: one part a rank (fragments.py)
                              model.json               what rebuilds the model
                              config.yaml              the run's configuration
                              state.json               step, counters, data set, log window, code version
                              MANIFEST.json            size and SHA-256 of every file above
    checkpoints/latest                                 name of the newest

A folder without the dot in front of its name is complete. Nothing is loaded by executing pickled code.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fdtrain.errors import UserError
from fdtrain.networks.model import ModelSpec

VERSION = 1
MANIFEST, LATEST, MODEL_FILE, CONFIG_FILE, STATE_FILE = (
    "MANIFEST.json",
    "latest",
    "model.json",
    "config.yaml",
    "state.json",
)

PATIENCE = 60.0
"""Seconds until another host's file must have come into sight on a shared file system."""


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself. ``step`` steps are done; ``window`` is the log's unfinished average."""

    step: int
    images: int
    world_size: int
    zero_stage: int
    window: list[float]
    skips: int
    """Steps left out in a row, up to this one."""
    returns: int
    """Times that the run went back to a checkpoint; the draws of later steps depend on it."""
    counters: dict[str, Any]
    """The engine's."""
    run: dict[str, Any]
    """The settings that fix the run's trajectory."""
    code: str | None
    """Commit of the program that wrote it."""


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def aside_name(step: int) -> str:
    return f".{folder_name(step)}"


def describe(aside: Path, spec: ModelSpec, config: str, state: State) -> None:
    """Write all but the parts."""
    spec.save(aside / MODEL_FILE)
    (aside / CONFIG_FILE).write_text(config)
    (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    for name in (MODEL_FILE, CONFIG_FILE, STATE_FILE):
        _sync(aside / name)


def note_digest(part: Path, digest: dict[str, int | str]) -> None:
    """Leave a part's size and checksum for :func:`commit`."""
    write_aside(_note(part), json.dumps(digest))


def _note(part: Path) -> Path:
    return part.with_suffix(".json")


def commit(aside: Path, parts: list[str]) -> Path:
    """List the finished files of all ranks, and give the folder its name; ``latest`` moves last.

    Raises:
        OSError: the disk is full, broken, or not the same one for every rank.
    """
    manifest = {name: _entry(aside / name) for name in (MODEL_FILE, CONFIG_FILE, STATE_FILE)}
    for name in parts:
        note = _note(aside / name)
        manifest[name] = json.loads(_wait_for(note))
        note.unlink()
    write_aside(aside / MANIFEST, json.dumps({"version": VERSION, "files": manifest}, indent=1) + "\n")
    final = aside.with_name(aside.name.removeprefix("."))
    if final.exists():
        delete(final)
    aside.rename(final)
    _sync(final.parent)
    write_aside(final.with_name(LATEST), final.name + "\n")
    return final


def _wait_for(note: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        return note.read_text()
    except FileNotFoundError:
        raise OSError(f"{note.parent} is not on a file system that all hosts share") from None


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def retain(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete all but the last ``keep_last`` checkpoints and those at multiples of ``keep_every`` steps."""
    for path in committed(folder)[keep_last:]:
        if not (keep_every and step_of(path) % keep_every == 0):
            delete(path)


def delete(checkpoint: Path) -> None:
    """Renamed first: a half-deleted folder must not look like a checkpoint."""
    gone = checkpoint.with_name(f".old_{checkpoint.name}")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for path in (folder / "checkpoints").glob(".*step_????????"):
        shutil.rmtree(path, ignore_errors=True)


def committed(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first, by name alone."""
    return sorted((folder / "checkpoints").glob("step_????????"), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if all are there and unchanged."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if manifest["version"] != VERSION:
            return f"its version is {manifest['version']}, this fdtrain reads {VERSION}"
        files = manifest["files"]
        for name, expected in files.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                return f"{name} is cut short or changed"
        missing = {MODEL_FILE, STATE_FILE} - files.keys()
        if missing or not any(name.startswith("part_") for name in files):
            return f"{MANIFEST} does not list all files"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def newest(folder: Path, fits: Callable[[Path], Any]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run folder that is sound and that ``fits`` accepts, and what is wrong with
    newer ones; ``fits`` raises UserError."""
    faults = []
    for path in committed(folder):
        problem = fault(path)
        if problem is None:
            try:
                fits(path)
                return path, faults
            except UserError as error:
                problem = str(error)
        faults.append(f"{path.name}: {problem}")
    return None, faults


def newest_step(folder: Path) -> Path | None:
    """The checkpoint that ``latest`` names, or, where it names none, the newest by name."""
    try:
        named = folder / "checkpoints" / (folder / "checkpoints" / LATEST).read_text().strip()
        if named.name.startswith("step_") and named.is_dir():
            return named
    except (OSError, UnicodeDecodeError):
        pass
    return next(iter(committed(folder)), None)


def read_state(checkpoint: Path) -> State:
    """Raises UserError when the file cannot be read."""
    try:
        content = json.loads((checkpoint / STATE_FILE).read_text())
        return State(**{field.name: content[field.name] for field in fields(State)})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{checkpoint / STATE_FILE} cannot be read ({error}). Resume from another checkpoint."
        ) from None


def check_fits(checkpoint: Path, spec: ModelSpec, run: dict[str, Any]) -> State:
    """Check that a checkpoint continues this very run, before anything is built.

    Args:
        run: the settings that fix the run's trajectory, as the checkpoint's ``State.run`` has them.

    Raises:
        UserError: another network, data set, seed or batch.
    """
    found = ModelSpec.load(checkpoint / MODEL_FILE)
    if differences := found.differences(spec):
        raise UserError(
            f"{checkpoint} holds another model than the configuration: {'; '.join(differences)}. "
            "Restore the configuration, or give the run another name."
        )
    state = read_state(checkpoint)
    if changed := [f"{k} {state.run.get(k)!r} against {v!r}" for k, v in run.items() if state.run.get(k) != v]:
        raise UserError(
            f"{checkpoint} belongs to a run with other settings: {'; '.join(changed)}. "
            "Restore them, or give the run another name."
        )
    return state


def write_aside(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    _sync(aside)
    os.replace(aside, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file's or folder's bytes to the disk: a rename must not overtake them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
