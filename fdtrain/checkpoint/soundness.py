"""Which checkpoints can be used: undamaged, of this very run, and free of trouble."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fdtrain import distributed, files
from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import finite, fragments_of, index_of, index_within, part_name
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec, NotAllowed
from fdtrain.strict_yaml import shown


class OtherRun(UserError):
    """A checkpoint is of another run than the configuration's: an older one that fits would cost what it has done."""


def fault(checkpoint: Path, together: bool = False) -> str | None:
    """What is wrong with a checkpoint, or None if all its files are there and unchanged, are of the step that its name
    says, and hold all of the model in finite numbers.

    Args:
        together: every rank calls this, reads its share of the parts, and gets the same answer.

    Raises:
        NotAllowed: it cannot be told without code that is not allowed.
    """
    for check in (_ill_described, _changed):
        problem = _problem(check, checkpoint, together)
        if together:
            problem = next(filter(None, distributed.of_all(problem)), None)
        if problem:
            return problem
    return None


def _problem(
    check: Callable[[Path, store.Manifest, range], str | None], checkpoint: Path, together: bool
) -> str | None:
    """What a check of a checkpoint's manifest and of some of its parts finds, or what keeps it from finding it."""
    try:
        manifest = store.read_manifest(checkpoint)
        parts = distributed.share(manifest.parts) if together else range(manifest.parts)
        return check(checkpoint, manifest, parts)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except NotAllowed:
        raise
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{store.MANIFEST} cannot be read ({error})"


def _ill_described(checkpoint: Path, manifest: store.Manifest, parts: range) -> str | None:
    """By the small files, and the sizes and headers of the parts."""
    for name in manifest.files.keys() - set(map(part_name, range(manifest.parts))):
        if store.manifest_entry(checkpoint / name) != manifest.files[name]:
            return f"{name} is cut short or changed"
    state = store.read_state(checkpoint)
    if not {store.MODEL_FILE, store.STATE_FILE} <= manifest.files.keys() or manifest.parts != state.world_size:
        return store.NOT_ALL
    if store.NAME.fullmatch(checkpoint.name) and store.step_of(checkpoint) != state.step:
        return f"{store.STATE_FILE} is of step {state.step}"
    for name in map(part_name, parts):
        if (checkpoint / name).stat().st_size != manifest.files[name]["bytes"]:
            return f"{name} is cut short or changed"
    if manifest.index is not None and index_within(manifest.index, parts) != index_of(
        (part, fragments_of(checkpoint / part_name(part))) for part in parts
    ):
        return f"{store.MANIFEST} has another index than the parts"
    return store.open_parts(checkpoint).lacking(_sizes(checkpoint))


def _changed(checkpoint: Path, manifest: store.Manifest, parts: range) -> str | None:
    """By all of the parts."""
    for name in map(part_name, parts):
        if files.sha256(checkpoint / name) != manifest.files[name]["sha256"]:
            return f"{name} is cut short or changed"
        recorded = manifest.files[name].get("finite")
        # Earlier versions did not record it.
        if not (finite(checkpoint / name) if recorded is None else recorded):
            return "it has numbers that are not finite"
    return None


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Elements of each parameter of the model."""
    with torch.device("meta"):
        model = Model(ModelSpec.load(checkpoint / store.MODEL_FILE))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def trouble(checkpoint: Path) -> str | None:
    """Why a run in trouble must not roll back to a checkpoint, by its own description; None if it may."""
    try:
        if store.read_state(checkpoint).skips:
            return "steps were being skipped"
        # Earlier versions do not record it.
        if not all(entry.get("finite", True) for entry in store.read_manifest(checkpoint).files.values()):
            return "it has numbers that are not finite"
    except (OSError, ValueError, UserError) as error:
        return str(error)
    return None


def newest(candidates: list[Path], together: bool = False) -> tuple[Path | None, list[str]]:
    """The first checkpoint that is sound, and what is wrong with those before it. ``together``: as in :func:`fault`, of
    the same candidates on every rank."""
    faults = []
    for path in candidates:
        problem = fault(path, together)
        if problem is None:
            return path, faults
        faults.append(f"{path.name}: {problem}")
    return None, faults


def check_same_run(checkpoint: Path, spec: ModelSpec, identity: dict[str, Any]) -> store.State:
    """Check that a checkpoint continues this very run, before anything is built.

    Args:
        identity: the settings that fix what the run is, as the checkpoint's ``State.run`` has them. Of one that an
            earlier version did not record there, the checkpoint's configuration counts.

    Raises:
        OtherRun: it is of another network, data set, seed, batch or method.
        UserError: its description cannot be read.
    """
    if differences := ModelSpec.load(checkpoint / store.MODEL_FILE).differences(spec):
        raise OtherRun(
            f"{checkpoint} holds another model than the configuration: {'; '.join(differences)}. "
            "Restore the configuration, or give the run another name."
        )
    state = store.read_state(checkpoint)
    recorded = {store.OPTIMIZER: "adamw"} | store.read_settings(checkpoint) | state.run
    if recorded.get(store.SHARDS, identity.get(store.SHARDS)) != identity.get(store.SHARDS):
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
    before = store.read_settings(checkpoint)
    return [
        f"{key} was {shown(before[key])}, is {shown(value)}"
        for key, value in settings.items()
        if key in before and before[key] != value
    ]
