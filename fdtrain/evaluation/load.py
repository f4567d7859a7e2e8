"""Find and load a trained model: from an export, a checkpoint or a run folder. Needs no DeepSpeed, runs no code."""

import shutil
from pathlib import Path

from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec, load_weights

# The same two files under the names of an export and of a checkpoint.
NAMES = (("config.json", "model.safetensors"), ("model.json", "ema.safetensors"))


def find_model(path: str | Path) -> tuple[Path, Path]:
    """Description and averaged weights of the model that ``path`` stands for; of a run, its newest checkpoint's.

    Raises:
        UserError: there is no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}. Give a run, a checkpoint or an export.")
    latest = folder / "checkpoints" / "latest"
    if latest.is_file():
        folder = latest.parent / latest.read_text().strip()
    for names in NAMES:
        spec, weights = (folder / name for name in names)
        if spec.is_file() and weights.is_file():
            return spec, weights
    raise UserError(f"{path} holds no model: neither {' nor '.join(f'{a} with {b}' for a, b in NAMES)}.")


def load_model(path: str | Path) -> tuple[Model, ModelSpec]:
    """The model with its averaged weights, on the CPU, in evaluation mode, float32.

    Raises:
        UserError: there is no model, or its files are broken.
    """
    spec_file, weights = find_model(path)
    spec = ModelSpec.load(spec_file)
    return load_weights(spec, weights), spec


def export(path: str | Path, destination: str | Path) -> Path:
    """Copy the averaged weights and what rebuilds the model into a folder of their own.

    The folder holds ``model.safetensors`` and ``config.json``; :func:`load_model` reads it.

    Raises:
        UserError: nothing to export, or the folder cannot be written.
    """
    load_model(path)  # Nothing is exported that cannot be loaded.
    spec_file, weights = find_model(path)
    destination = Path(destination)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, destination / "model.safetensors")
        shutil.copyfile(spec_file, destination / "config.json")
    except OSError as error:
        raise UserError(f"cannot write into {destination} ({error.strerror}).") from error
    return destination
