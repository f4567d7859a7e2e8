"""Which checkpoints can be used: undamaged, of this very run, and free of trouble."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fdtrain.checkpoint.fragments import PART, FragmentReader, part_name
from fdtrain.checkpoint.store import (
    MANIFEST,
    MODEL_FILE,
    NAME,
    OPTIMIZER,
    SHARDS,
    STATE_FILE,
    State,
    committed,
    listed_files,
    read_settings,
    read_state,
    sha256,
    step_of,
)
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.strict_yaml import shown


class OtherRun(UserError):
    """A checkpoint is of another run than the configuration's: an older one that fits would cost what it has done."""


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if all its files are there and unchanged, are of the step that its name
    says, and hold all of the model in finite numbers."""
    try:
        entries = listed_files(checkpoint)
        for name, expected in entries.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is cut short or changed"
        state = read_state(checkpoint)
        parts = sorted(name for name in entries if PART.fullmatch(name))
        if MODEL_FILE not in entries or STATE_FILE not in entries or len(parts) != state.world_size:
            return f"{MANIFEST} does not list all files"
        if NAME.fullmatch(checkpoint.name) and step_of(checkpoint) != state.step:
            return f"{STATE_FILE} is of step {state.step}"
        if parts != [part_name(rank) for rank in range(len(parts))]:
            return f"{MANIFEST} does not list all files"
        fragments = FragmentReader(checkpoint, parts)
        if lacking := fragments.lacking(_sizes(checkpoint)):
            return lacking
        if not fragments.finite():
            return "it has numbers that are not finite"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Elements of each parameter of the model."""
    with torch.device("meta"):
        model = Model(ModelSpec.load(checkpoint / MODEL_FILE))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def trouble(checkpoint: Path) -> str | None:
    """Why a run in trouble must not roll back to a checkpoint, by its own description; None if it may."""
    try:
        if read_state(checkpoint).skips:
            return "steps were being skipped"
        # Earlier versions do not record it.
        if not all(entry.get("finite", True) for entry in listed_files(checkpoint).values()):
            return "it has numbers that are not finite"
    except (OSError, ValueError, UserError) as error:
        return str(error)
    return None


def newest(folder: Path, accept: Callable[[Path], Any]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run folder that is sound and that ``accept`` accepts, and what is wrong with
    newer ones; ``accept`` raises UserError."""
    faults = []
    for path in committed(folder):
        problem = fault(path)
        if problem is None:
            try:
                accept(path)
                return path, faults
            except UserError as error:
                problem = str(error)
        faults.append(f"{path.name}: {problem}")
    return None, faults


def check_same_run(checkpoint: Path, spec: ModelSpec, identity: dict[str, Any]) -> State:
    """Check that a checkpoint continues this very run, before anything is built.

    Args:
        identity: the settings that fix what the run is, as the checkpoint's ``State.run`` has them. Of one that an
            earlier version did not record there, the checkpoint's configuration counts.

    Raises:
        OtherRun: it is of another network, data set, seed, batch or method.
        UserError: its description cannot be read.
    """
    if differences := ModelSpec.load(checkpoint / MODEL_FILE).differences(spec):
        raise OtherRun(
            f"{checkpoint} holds another model than the configuration: {'; '.join(differences)}. "
            "Restore the configuration, or give the run another name."
        )
    state = read_state(checkpoint)
    recorded = {OPTIMIZER: "adamw"} | read_settings(checkpoint) | state.run
    if recorded.get(SHARDS, identity.get(SHARDS)) != identity.get(SHARDS):
        raise OtherRun(
            f"{checkpoint} belongs to a run on other shards: the data set has been packed again or changed, so its "
            "images would come in another order. Restore it, or give the run another name."
        )
    if changed := [f"{k} {recorded[k]!r} against {v!r}" for k, v in identity.items() if recorded.get(k, v) != v]:
        raise OtherRun(
            f"{checkpoint} belongs to a run with other settings: {'; '.join(changed)}. "
            "Restore them, or give the run another name."
        )
    return state


def changes(checkpoint: Path, settings: dict[str, Any]) -> list[str]:
    """What of a configuration, by dotted keys, is not as it was when a checkpoint was written, old and new."""
    before = read_settings(checkpoint)
    return [
        f"{key} was {shown(before[key])}, is {shown(value)}"
        for key, value in settings.items()
        if key in before and before[key] != value
    ]
