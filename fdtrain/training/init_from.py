"""The weights that a new run starts from: another model's, as far as they fit (``training.init_from``)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.evaluation.load import open_model
from fdtrain.networks.model import Model, ModelSpec

FILE = "init_from.json"
"""Of a run's folder: what it started from."""
LAYERS = ("channels", "multipliers", "blocks", "size")
"""Options that say which layers a network has: with others, a name stands for another layer."""
LABELS = "network.embed_label.weight"


def read(path: Path, spec: ModelSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The averaged weights of a run (its newest checkpoint), a checkpoint or an export that fit a model; and what
    became of all of them, and of this model's, for :data:`FILE`.

    Those fit that have a parameter's name and shape; the embedding of labels only if they are the same classes. Those
    ``left`` keep their initial values, each for the reason given; ``unused`` are the other model's alone.

    Raises:
        UserError: there is no model, its files are damaged, or it has other layers.
    """
    try:
        source, origin = open_model(path)
    except UserError as error:
        raise UserError(f"training.init_from: {error}") from error
    _check_layers(path, source.spec, spec)
    given = dict(source.named_parameters())
    if not all(bool(torch.isfinite(weight).all()) for weight in given.values()):
        raise UserError(f"training.init_from: the weights of {path} are not finite. Take another model.")
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in Model(spec).named_parameters()}
    reasons = {name: _misfit(name, shape, given, source.spec, spec) for name, shape in wanted.items()}
    matched = {name: given[name].detach() for name, reason in reasons.items() if reason is None}
    return matched, {
        "path": str(path),
        "model": str(origin.folder),
        "step": origin.step,
        "weights_sha256": origin.sha256,
        "matched": list(matched),
        "left": {name: reason for name, reason in reasons.items() if reason is not None},
        "unused": [name for name in given if name not in wanted],
    }


def _check_layers(path: Path, source: ModelSpec, spec: ModelSpec) -> None:
    pairs = {"name": (source.network, spec.network)}
    if source.network == spec.network:
        pairs = {name: (source.network_options.get(name), spec.network_options.get(name)) for name in LAYERS}
    others = [f"network.{name} {there!r}, here {here!r}" for name, (there, here) in pairs.items() if there != here]
    if others:
        raise UserError(
            f"training.init_from: {path} has another architecture: {'; '.join(others)}. Set these as they are there, "
            "or take another model."
        )


def _misfit(
    name: str, shape: torch.Size, given: dict[str, torch.nn.Parameter], source: ModelSpec, spec: ModelSpec
) -> str | None:
    """Why a parameter does not start from the given one of its name; None if it does."""
    if name not in given:
        return "new"
    if given[name].shape != shape:
        return f"{list(given[name].shape)} there, {list(shape)} here"
    if name == LABELS and (source.classes, source.null_class) != (spec.classes, spec.null_class):
        return "other classes"
    return None
