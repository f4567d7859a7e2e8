"""Checkpoints as they lie on the disk (docs/checkpoints.md).

    checkpoints/step_00001000/part_00000.safetensors   weights, average, moments: one part a rank (fragments.py)
                              model.json               what rebuilds the model
                              config.yaml              the run's configuration
                              state.json               step, counters, data set, log window, code version
                              MANIFEST.json            size and SHA-256 of every file above, index of the fragments
    checkpoints/latest                                 name of the newest
    averages/step_00001000/                            the same files; the parts hold power-function averages alone

A folder without the dot in front of its name is complete. Nothing is loaded by executing pickled code.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from fdtrain import files
from fdtrain.checkpoint.fragments import PART, FragmentReader, Index, Place, fragments_of, index_of, part_name
from fdtrain.errors import UserError, excerpt
from fdtrain.networks.model import ModelSpec
from fdtrain.strict_yaml import flattened, read_mapping

VERSION = 1
MANIFEST, LATEST = "MANIFEST.json", "latest"
DESCRIPTION = MODEL_FILE, CONFIG_FILE, STATE_FILE = "model.json", "config.yaml", "state.json"

NOT_ALL = f"{MANIFEST} does not list all files"

CHECKPOINTS, AVERAGES = "checkpoints", "averages"
"""Of a run: the folders of its checkpoints, and of the snapshots of its power-function averages (profiles.py)."""

NAME = re.compile(r"step_(\d{8,})")

SHARDS = "data.shards"
"""Of ``State.run``: the fingerprint of the images trained on. Checkpoints of earlier versions have none."""

OPTIMIZER = "training.optimizer"
"""Of ``State.run``. Checkpoints of earlier versions have none: theirs was AdamW."""

VISIBILITY_TIMEOUT_SECONDS = 60.0
"""Until another host's file must be visible on a shared file system."""


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
    """Steps skipped in a row, up to this one."""
    rollbacks: Annotated[int, Field(validation_alias=AliasChoices("rollbacks", "returns"))]
    """Times that the run went back to a checkpoint; the draws of later steps depend on it. Earlier versions wrote
    ``returns``."""
    counters: Counters
    run: dict[str, Any]
    """The settings that fix the run's trajectory."""
    code: str | None
    """Commit of the program that wrote it."""
    scheduled: bool = True
    """Due by the configuration, and not only because the process ended: rollback goes to no others, so that it goes
    where it would have gone without the interruption. Earlier versions do not record it."""


_STATE = TypeAdapter(State)


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def temporary_name(step: int) -> str:
    """Of a checkpoint that is being written."""
    return f".{folder_name(step)}"


def describe(temporary: Path, spec: ModelSpec, config: str, state: State) -> None:
    """Write all but the parts into a checkpoint's temporary folder."""
    spec.save(temporary / MODEL_FILE)
    (temporary / CONFIG_FILE).write_text(config)
    (temporary / STATE_FILE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    for name in DESCRIPTION:
        files.sync(temporary / name)


def record_digest(part: Path, digest: dict[str, Any]) -> None:
    """Leave what the manifest is to say of a part for :func:`commit`."""
    files.write_text(_digest_record(part), json.dumps(digest), make_folder=False)


def _digest_record(part: Path) -> Path:
    return part.with_suffix(".json")


def commit(temporary: Path, parts: int) -> Path:
    """List the finished files of all ranks, of which there are so many ``parts``, and give the folder its name; to a
    checkpoint ``latest`` moves.

    Raises:
        OSError: the disk is full, broken, or not the same one for every rank.
    """
    entries: dict[str, dict[str, Any]] = {name: manifest_entry(temporary / name) for name in DESCRIPTION}

    def fragments() -> Iterator[tuple[int, list[Place]]]:
        for part in range(parts):
            record = _digest_record(temporary / part_name(part))
            entries[part_name(part)] = json.loads(_wait_for(record))
            record.unlink()
            yield part, entries[part_name(part)].pop("fragments")

    index = index_of(fragments())
    text = json.dumps({"version": VERSION, "files": entries, "fragments": index}) + "\n"
    files.write_text(temporary / MANIFEST, text, make_folder=False)
    final = final_path(temporary)
    if final.exists():
        delete(final)
    temporary.rename(final)
    files.sync(final.parent)
    if final.parent.name == CHECKPOINTS:
        point_latest_to(final)
    return final


def final_path(temporary: Path) -> Path:
    """Where :func:`commit` puts a temporary folder."""
    return temporary.with_name(temporary.name.removeprefix("."))


def point_latest_to(checkpoint: Path) -> None:
    files.write_text(checkpoint.with_name(LATEST), checkpoint.name + "\n", make_folder=False)


def _wait_for(record: Path) -> str:
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_SECONDS
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        return record.read_text()
    except FileNotFoundError:
        raise OSError(f"{record.parent} is not on a file system that all hosts share") from None


def manifest_entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def delete(checkpoint: Path) -> None:
    """Renamed first: a half-deleted folder must not look like a checkpoint."""
    deleted = checkpoint.with_name(f".old_{checkpoint.name}")
    shutil.rmtree(deleted, ignore_errors=True)
    checkpoint.rename(deleted)
    shutil.rmtree(deleted, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for series in (CHECKPOINTS, AVERAGES):
        for path in (folder / series).glob(".*step_*"):
            shutil.rmtree(path, ignore_errors=True)
    for path in (folder / CHECKPOINTS).glob(f".{LATEST}.*"):
        with suppress(OSError):
            path.unlink()


def committed(folder: Path, series: str = CHECKPOINTS) -> list[Path]:
    """The checkpoints of a run folder, or the snapshots of its averages, newest first, by name alone."""
    found = [path for path in (folder / series).glob("step_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Raises ValueError for a folder whose name is no checkpoint's."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is no checkpoint's name")
    return int(match[1])


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's manifest lists: an entry of each file, and the index of the fragments in its parts, which
    earlier versions did not write."""

    version: Literal[1]
    files: dict[Annotated[str, Field(pattern=rf"^({'|'.join(map(re.escape, DESCRIPTION))}|{PART.pattern})$")], dict]
    index: Annotated[Index | None, Field(validation_alias="fragments")] = None

    @cached_property
    def parts(self) -> int:
        """The number of them."""
        return sum(bool(PART.fullmatch(name)) for name in self.files)


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(checkpoint: Path) -> Manifest:
    """
    Raises:
        OSError, UserError: it cannot be read, is of another version, or lists what is no checkpoint's.
    """
    try:
        manifest = _MANIFEST.validate_json((checkpoint / MANIFEST).read_bytes())
    except ValidationError as error:
        raise UserError(f"{MANIFEST} cannot be read ({_first(error)})") from None
    if any(part_name(part) not in manifest.files for part in range(manifest.parts)):
        raise UserError(NOT_ALL)
    if any(run.part + run.pieces > manifest.parts for runs in (manifest.index or {}).values() for run in runs):
        raise UserError(f"{MANIFEST} has an index of more parts than it lists")
    return manifest


def _first(error: ValidationError) -> str:
    """The first of its mistakes: where, and what."""
    first = error.errors()[0]
    return excerpt(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "))


def open_parts(checkpoint: Path) -> FragmentReader:
    """The fragments of a checkpoint, out of the files that its manifest lists. Where that has no index of them, every
    part is opened.

    Raises:
        UserError: one cannot be read.
    """
    try:
        manifest = read_manifest(checkpoint)
        index = manifest.index
        if index is None:
            parts = range(manifest.parts)
            index = index_of((part, fragments_of(checkpoint / part_name(part))) for part in parts)
        return FragmentReader(checkpoint, index)
    except OSError as error:
        raise UserError(f"{checkpoint / MANIFEST} cannot be read ({error}). Resume from another checkpoint.") from None


def newest_step(folder: Path) -> Path | None:
    """The checkpoint that ``latest`` names, or, where it names none, the newest by name."""
    try:
        named = (folder / CHECKPOINTS / LATEST).read_text().strip()
        if NAME.fullmatch(named) and (folder / CHECKPOINTS / named).is_dir():
            return folder / CHECKPOINTS / named
    except (OSError, UnicodeDecodeError):
        pass
    return next(iter(committed(folder)), None)


def read_state(checkpoint: Path) -> State:
    """Raises UserError when the file cannot be read, or lacks something."""
    try:
        return _STATE.validate_json((checkpoint / STATE_FILE).read_bytes())
    except ValidationError as error:
        reason = _first(error)
    except OSError as error:
        reason = error.strerror
    raise UserError(f"{checkpoint / STATE_FILE} cannot be read ({reason}). Resume from another checkpoint.")


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was written with, by dotted keys; none where it cannot be read."""
    try:
        return flattened(read_mapping(checkpoint / CONFIG_FILE, "cannot read", "a configuration"))
    except UserError:
        return {}
