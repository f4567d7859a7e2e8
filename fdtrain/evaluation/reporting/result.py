"""Where an evaluation's numbers go: one JSON file each, with everything that defines them (docs/evaluation.md)."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation.load import find_model, read_model
from fdtrain.networks.model import Model, ModelSpec

FOLDER = "evaluation"
"""Of a run: its results, and what is kept of unfinished ones."""


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated: its folder, its weights' checksum, its run's folder and step where there are."""

    folder: Path
    sha256: str
    run: Path | None
    step: int | None

    @property
    def results(self) -> Path | None:
        """Folder of the results, of a run."""
        return self.run / FOLDER if self.run else None

    @property
    def home(self) -> Path:
        """Folder of what is saved with the model: the run's, where there is one."""
        return self.run or self.folder

    def identity(self) -> dict[str, Any]:
        """The keys that every result has of its model."""
        return {"model": str(self.folder), "weights_sha256": self.sha256, "step": self.step}


def open_model(path: str | Path) -> tuple[Model, ModelSpec, Subject]:
    """What ``path``, a run, a checkpoint or an export, stands for now: a run's newest checkpoint may change later.

    Raises:
        UserError: there is no model, or its files are broken.
    """
    found = find_model(path)
    model, spec = read_model(*found)
    folder = found[0].parent
    number = folder.name.removeprefix("step_")
    is_run = (Path(path) / "checkpoints").is_dir()
    step = int(number) if number.isdigit() else None
    return model, spec, Subject(folder, weights_digest(model), Path(path) if is_run else None, step)


def weights_digest(model: Model) -> str:
    """SHA-256 of names, shapes and float32 values: the same in a checkpoint of any number of ranks and an export."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {list(weight.shape)}\n".encode())
        digest.update(weight.contiguous().numpy())
    return digest.hexdigest()


def split_identity(split: Split) -> dict[str, Any]:
    """The keys that every result has of the split it was computed on; the fingerprint is of its shards' checksums."""
    shards = split.description.splits[split.name]
    fingerprint = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return {
        "dataset": split.description.name,
        "source": split.description.source,
        "split": split.name,
        "fingerprint": fingerprint,
        "images_in_split": len(split),
        "levels": split.description.levels,
    }


def write(result: dict[str, Any], path: Path, option: str) -> None:
    """Write a result; ``option`` is what chose the path, for the message of :func:`replace`."""
    replace(path, lambda aside: aside.write_text(json.dumps(result, indent=1) + "\n"), option)


def write_values(values: dict[str, Tensor], path: Path, option: str) -> None:
    """Write values of each image as safetensors, as :func:`write` does."""
    replace(path, lambda aside: save_file({k: v.contiguous() for k, v in values.items()}, aside), option)


def replace(path: Path, write_to: Callable[[Path], Any], option: str | None = None) -> None:
    """Write a file aside, in a folder that is made if need be, and give it its name in one rename.

    Raises:
        UserError: it cannot be written; ``option`` names in the message what chose the path.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(aside)
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        chosen, reason = f"{option}: " if option else "", getattr(error, "strerror", None) or error
        raise UserError(f"{chosen}cannot write {path} ({reason}).") from error
