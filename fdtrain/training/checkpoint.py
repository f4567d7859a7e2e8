"""Checkpoints of a run: written aside, listed with checksums, committed by one rename (docs/checkpoints.md).

    checkpoints/step_00001000/engine/...         DeepSpeed's state: weights, optimiser, loss scale
                              ema.safetensors    averaged weights; with model.json, all that evaluation needs
                              model.json         what rebuilds the model
                              state.json         step, world size, data set, log window
                              MANIFEST.json      size and SHA-256 of every file above
    checkpoints/latest                           name of the newest

A folder without the dot in front of its name is complete. Nothing is loaded by executing pickled code.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from ema_pytorch import EMA
from safetensors.torch import load_file, save_file

from fdtrain.config import Checkpoint
from fdtrain.errors import UserError
from fdtrain.networks.model import ModelSpec

if TYPE_CHECKING:
    from fdtrain.training.engine import Engine

MANIFEST, LATEST, EMA_FILE, MODEL_FILE, STATE_FILE = (
    "MANIFEST.json",
    "latest",
    "ema.safetensors",
    "model.json",
    "state.json",
)


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself. ``step`` steps are done; ``window`` is the log's unfinished average."""

    step: int
    images: int
    world_size: int
    zero_stage: int
    window: list[float]
    run: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def save(folder: Path, engine: "Engine", ema: EMA, spec: ModelSpec, state: State, keep: Checkpoint) -> Path:
    """Write the checkpoint of ``state.step`` into the run's ``folder / checkpoints``. Every rank must call it."""
    checkpoints = folder / "checkpoints"
    final, aside = checkpoints / folder_name(state.step), checkpoints / f".{folder_name(state.step)}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    engine.save(aside)
    if first:
        save_file({k: v.contiguous() for k, v in ema.ema_model.state_dict().items()}, aside / EMA_FILE)
        spec.save(aside / MODEL_FILE)
        (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    dist.barrier()
    if first:
        _commit(aside, final)
        _write_aside(checkpoints / LATEST, final.name + "\n")
        _retain(checkpoints, keep)
    dist.barrier()
    return final


def _commit(aside: Path, final: Path) -> None:
    files = sorted(p for p in aside.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(aside)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    for path in files:
        _sync(path)
    _write_aside(aside / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _sync(final.parent)


def _retain(checkpoints: Path, keep: Checkpoint) -> None:
    """Delete all but the last ``keep_last`` and those at multiples of ``keep_every`` steps."""
    for path in committed(checkpoints.parent)[keep.keep_last :]:
        if not (keep.keep_every and step_of(path) % keep.keep_every == 0):
            # Renamed first: a half-deleted folder must not look like a checkpoint.
            gone = path.rename(path.with_name(f".{path.name}"))
            shutil.rmtree(gone, ignore_errors=True)


def committed(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first, by name alone."""
    return sorted((folder / "checkpoints").glob("step_????????"), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if all are there and unchanged."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        for name, expected in manifest.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                return f"{name} is cut short or changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def newest_sound(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run folder whose files are all as written, and what was wrong with newer ones."""
    faults = []
    for path in committed(folder):
        problem = fault(path)
        if problem is None:
            return path, faults
        faults.append(f"{path}: {problem}")
    return None, faults


def read_state(checkpoint: Path) -> State:
    """Raises UserError when the file cannot be read."""
    try:
        return State(**json.loads((checkpoint / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{checkpoint / STATE_FILE} cannot be read ({error}). Resume from another checkpoint."
        ) from None


def readable(checkpoint: Path) -> bool:
    """Whether the description of a checkpoint is there; its data may still be damaged."""
    return all((checkpoint / name).is_file() for name in (MODEL_FILE, STATE_FILE))


def check_fits(checkpoint: Path, spec: ModelSpec, run: dict[str, Any], zero_stage: int, world_size: int) -> State:
    """Check that a checkpoint continues this very run, before anything is built.

    Args:
        run: the settings that fix the run's trajectory, as the checkpoint's ``State.run`` has them.

    Raises:
        UserError: another network, data set, seed or batch, or a number of processes that cannot read it.
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
    sharded = max(zero_stage, state.zero_stage) > 0
    if sharded and (state.world_size, state.zero_stage) != (world_size, zero_stage):
        raise UserError(
            f"{checkpoint} was written by {state.world_size} processes at training.zero_stage {state.zero_stage}; "
            f"this launch has {world_size} at stage {zero_stage}. Launch as many, at the same stage."
        )
    return state


def load(checkpoint: Path, engine: "Engine", ema: EMA) -> None:
    """Load weights, optimiser and average. Every rank must call it."""
    engine.load(checkpoint)
    ema.ema_model.load_state_dict(load_file(checkpoint / EMA_FILE))
    ema.step.fill_(read_state(checkpoint).step)
    ema.initted.fill_(True)


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


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    _sync(aside)
    os.replace(aside, path)
