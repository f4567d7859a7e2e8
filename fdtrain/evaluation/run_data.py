"""The data that a model is evaluated on: those that the user names, or those that its run has recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdtrain.data.dataset import FILE, fingerprint, read_description
from fdtrain.data.mixture import DataSets, open_data
from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.strict_yaml import MAX_BYTES, parse

CONFIG = "config.yaml"


def open_split(model: str | Path | None, data: str | None, split: str | None, role: str = "test") -> Split:
    """The split to evaluate on.

    Args:
        model: a run, or one of its checkpoints, whose record is followed where ``data`` is not given.
        data: the path of a packed data set.
        split: by name; None: the run's for this ``role``, without a run the one called so.
        role: "train" or "test".

    Raises:
        UserError: there is no such data set or split; or no ``data`` is given, and the model has no record of its data,
            or the data are no longer those that it was trained on.
    """
    if data is not None:
        return Split(data, split or role)
    run = _run(model)
    settings = _settings(run)
    split = split or settings.get(f"{role}_split", role)
    if not isinstance(split, str):
        raise UserError(
            f"{run} was trained without held-out images (data.test_split: null). Name a split with --split, such as "
            "--split train, or other images with --data."
        )
    return Split(_opened(run, settings, split), split)


def _run(model: str | Path | None) -> Path:
    """The run that a path is in."""
    for folder in (Path(model), Path(model).parent.parent) if model is not None else ():
        if (folder / CONFIG).is_file():
            return folder
    which = f"{model} is no run, and has no record of its data" if model is not None else "these are no run's samples"
    raise UserError(f"{which}. Name a packed data set with --data.")


def _settings(run: Path) -> Mapping[str, Any]:
    """The section ``data`` of the run's configuration."""
    file = run / CONFIG
    try:
        content = parse(file.read_bytes()[: MAX_BYTES + 1].decode())
        settings = content["data"]
        sources = [{"path": settings["path"], "weight": 1.0}] if settings.get("path") else settings["mixture"]
        return {
            **settings,
            "paths": [str(source["path"]) for source in sources],
            "weights": [float(source["weight"]) for source in sources],
        }
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}). Name the data set with --data.") from error
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not say what the run was trained on. Name the data set with --data.") from error


def _opened(run: Path, settings: Mapping[str, Any], split: str) -> DataSets:
    """The run's data, which must have the shards that it has recorded."""
    where = ", ".join(settings["paths"])
    try:
        data = open_data(settings["paths"], settings["weights"])
        data.split(split)
    except UserError as error:
        raise UserError(
            f"the data of {run} cannot be opened: {error} Or name their present place with --data."
        ) from error
    record = run / FILE
    if record.is_file():
        recorded = read_description(run).splits.get(split)
        if recorded is not None and fingerprint(recorded) != fingerprint(data.description.splits[split]):
            raise UserError(
                f"{where} was packed again since {run} was trained on it: '{split}' has other shards than {record}. "
                "Restore it, or name it with --data to evaluate on what is there now."
            )
    return data
