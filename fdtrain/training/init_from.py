"""The weights that a new run starts from: another model's, as far as they fit (``training.init_from``)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.load import open_model
from fdtrain.networks.model import Model, ModelSpec

FILE = "init_from.json"
"""Of a run's folder: what it started from."""
LAYERS = ("channels", "multipliers", "blocks", "size")
"""Options that say which layers a network has: with others, a name stands for another layer."""
LABELS = "network.embed_label.weight"
MEANING = ("predictor", "scale", "interval", "network_input", "network_time", "network_skip", "levels")
"""Fields of a specification that change what the weights compute, but not which there are."""
SHOWN = 6
"""Parameters that a line of the log names."""


@dataclass(frozen=True)
class Report:
    """What became of another model's weights, and of this one's; parameters by name.

    ``left`` keep their initial values, each for the reason given; ``unused`` are the other model's alone;
    ``trained_as`` says in what the other model was trained differently.
    """

    path: str
    model: str
    step: int | None
    weights_sha256: str
    matched: list[str]
    left: dict[str, str]
    unused: list[str]
    trained_as: list[str]

    def lines(self) -> list[str]:
        """For the log."""
        count = len(self.matched) + len(self.left)
        lines = [f"training.init_from: {len(self.matched)} of {count} tensors start as they are in {self.model}"]
        left = [f"{name} ({reason})" for name, reason in self.left.items()]
        named = {"left at their initial values": left, "not used": self.unused, "trained otherwise": self.trained_as}
        return lines + [f"  {title}: {_some(names)}" for title, names in named.items() if names]


def _some(names: list[str]) -> str:
    more = [f"and {len(names) - SHOWN} more, see {FILE}"] if names[SHOWN:] else []
    return ", ".join([excerpt(name) for name in names[:SHOWN]] + more)


def read(path: Path, spec: ModelSpec) -> tuple[dict[str, Tensor], Report]:
    """The averaged weights of a run (its newest checkpoint), a checkpoint or an export that fit a model.

    Those fit that have a parameter's name and shape; the embedding of labels only if they are the same classes.

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
    report = Report(
        path=str(path),
        model=str(origin.folder),
        step=origin.step,
        weights_sha256=origin.sha256,
        matched=list(matched),
        left={name: reason for name, reason in reasons.items() if reason is not None},
        unused=[name for name in given if name not in wanted],
        trained_as=[
            f"{name} {there!r}, here {here!r}"
            for name in MEANING
            if (there := getattr(source.spec, name)) != (here := getattr(spec, name))
        ],
    )
    return matched, report


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
