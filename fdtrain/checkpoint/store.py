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
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fdtrain.checkpoint.fragments import PART, FragmentReader, part_name
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

NAME = re.compile(r"step_(\d{8,})")

SHARDS = "data.shards"
"""Of ``State.run``: the fingerprint of the images trained on. Checkpoints of earlier versions have none."""

HEALTHY = 2
"""Checkpoints without trouble that retention never deletes: one to return to, and one in case that is damaged."""

PATIENCE = 60.0
"""Seconds until another host's file must have come into sight on a shared file system."""


@dataclass(frozen=True)
class Counters:
    """The engine's: updates of Adam; the scaler's ``scale`` and steps ``since`` it changed, empty without one; the
    gradient guard's running mean and its number."""

    updates: float
    loss_scale: dict[str, int | float]
    guard: tuple[float, float]

    def __post_init__(self):
        if self.loss_scale and self.loss_scale.keys() != {"scale", "since"}:
            raise ValueError("loss_scale needs scale and since")


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
    counters: Counters
    run: dict[str, Any]
    """The settings that fix the run's trajectory."""
    code: str | None
    """Commit of the program that wrote it."""


_STATE = TypeAdapter(State)


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


def note_digest(part: Path, digest: dict[str, int | str | bool]) -> None:
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


def retain(written: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete older checkpoints than the one just ``written``.

    There stay the last ``keep_last`` up to it, those at multiples of ``keep_every`` steps, and the newest that a run in
    trouble may return to (:func:`trouble`). Later ones, which a resumed run passed over, are not its own.
    """
    own = [path for path in committed(written.parent.parent) if step_of(path) <= step_of(written)]
    stay = {*own[:keep_last], *[path for path in own if trouble(path) is None][:HEALTHY]}
    for path in own:
        if path not in stay and not (keep_every and step_of(path) % keep_every == 0):
            delete(path)


def trouble(checkpoint: Path) -> str | None:
    """Why a run in trouble must not go back to a checkpoint, by what it says of itself; None if it may."""
    try:
        if read_state(checkpoint).skips:
            return "steps were being skipped"
        # Earlier versions do not say.
        if not all(entry.get("finite", True) for entry in _listed(checkpoint).values()):
            return "its weights are not finite"
    except (OSError, ValueError, UserError) as error:
        return str(error)
    return None


def return_to(checkpoint: Path) -> None:
    """Make a checkpoint the newest of its run: delete those of later steps."""
    write_aside(checkpoint.with_name(LATEST), checkpoint.name + "\n")
    for path in committed(checkpoint.parent.parent):
        if step_of(path) > step_of(checkpoint):
            delete(path)


def delete(checkpoint: Path) -> None:
    """Renamed first: a half-deleted folder must not look like a checkpoint."""
    gone = checkpoint.with_name(f".old_{checkpoint.name}")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for path in (folder / "checkpoints").glob(".*step_*"):
        shutil.rmtree(path, ignore_errors=True)


def committed(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first, by name alone."""
    found = [path for path in (folder / "checkpoints").glob("step_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(NAME.fullmatch(checkpoint.name)[1])


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if all its files are there and unchanged, are of the step that its name
    says, and its weights are finite."""
    try:
        files = _listed(checkpoint)
        for name, expected in files.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                return f"{name} is cut short or changed"
        state = read_state(checkpoint)
        parts = sorted(name for name in files if PART.fullmatch(name))
        if MODEL_FILE not in files or STATE_FILE not in files or len(parts) != state.world_size:
            return f"{MANIFEST} does not list all files"
        if NAME.fullmatch(checkpoint.name) and step_of(checkpoint) != state.step:
            return f"{STATE_FILE} is of step {state.step}"
        if parts != [part_name(rank) for rank in range(len(parts))]:
            return f"{MANIFEST} does not list all files"
        if not FragmentReader(checkpoint, parts).finite():
            return "its weights are not finite"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _listed(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file.

    Raises:
        OSError, ValueError: it cannot be read, is of another version, or lists what is no checkpoint's.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except RecursionError as error:
        raise ValueError(error) from None
    if not isinstance(manifest, dict) or not isinstance(files := manifest.get("files"), dict):
        raise ValueError("it lists no files")
    if manifest.get("version") != VERSION:
        raise UserError(f"its version is {manifest.get('version')}, this fdtrain reads {VERSION}")
    for name, entry in files.items():
        if name not in (MODEL_FILE, CONFIG_FILE, STATE_FILE) and not PART.fullmatch(name):
            raise ValueError(f"it lists {name!r}")
        if not isinstance(entry, dict):
            raise ValueError(f"it says nothing of {name}")
    return files


def open_parts(checkpoint: Path) -> FragmentReader:
    """The fragments of a checkpoint, out of the files that its manifest lists.

    Raises:
        UserError: one cannot be read.
    """
    try:
        return FragmentReader(checkpoint, sorted(name for name in _listed(checkpoint) if PART.fullmatch(name)))
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint / MANIFEST} cannot be read ({error}). Resume from another checkpoint.") from None


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
        if NAME.fullmatch(named.name) and named.is_dir():
            return named
    except (OSError, UnicodeDecodeError):
        pass
    return next(iter(committed(folder)), None)


def read_state(checkpoint: Path) -> State:
    """Raises UserError when the file cannot be read, or lacks something."""
    try:
        return _STATE.validate_json((checkpoint / STATE_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except OSError as error:
        reason = error.strerror
    raise UserError(f"{checkpoint / STATE_FILE} cannot be read ({reason}). Resume from another checkpoint.")


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
    if state.run.get(SHARDS, run.get(SHARDS)) != run.get(SHARDS):
        raise UserError(
            f"{checkpoint} belongs to a run on other shards: the data set has been packed again or changed, so its "
            "images would come in another order. Restore it, or give the run another name."
        )
    run = {k: v for k, v in run.items() if k != SHARDS}
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
