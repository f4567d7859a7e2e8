"""The files in a run's folder, any of which may be missing and none is trusted, and the data that it has recorded."""

import json
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fdtrain.checkpoint import store
from fdtrain.data.dataset import FILE, DatasetDescription, fingerprint, read_description
from fdtrain.data.mixture import DataSets, open_data
from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation import result
from fdtrain.evaluation.load import FOLDER
from fdtrain.evaluation.result import NllResult, Result, split_identity
from fdtrain.evaluation.samples import to_pixels
from fdtrain.networks.model import Model, ModelSpec, parameter_count
from fdtrain.strict_yaml import MAX_BYTES, flattened, parse

CONFIG = "config.yaml"
Kind = TypeVar("Kind", bound=Result)


@dataclass(frozen=True)
class RunFolder:
    """The content of a run's files; ``results`` by path, ``settings`` by ``section.key``. What is missing is None or
    empty."""

    path: Path
    config: str
    settings: dict[str, Any]
    dataset: DatasetDescription | None
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[Path, Result]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def split(self) -> str:
        """Whose images stand for the data: the held-out split, if there is one."""
        return str(self.settings.get("data.test_split", "test") or self.settings.get("data.train_split", "train"))

    def worth(self, found: NllResult) -> tuple[bool, int]:
        """The more of two evaluations says of the model what is asked first: of held-out images, and of the most."""
        return found.split == self.split, found.images

    @cached_property
    def spec(self) -> ModelSpec | None:
        """Of the newest checkpoint's model; None before the first checkpoint. Raises UserError: it is damaged."""
        newest = store.newest_step(self.path)
        return ModelSpec.load(newest / store.MODEL_FILE) if newest else None

    @cached_property
    def parameters(self) -> int | None:
        """How many numbers the network is made of, where there is a checkpoint."""
        if self.spec is None:
            return None
        with torch.device("meta"):
            return parameter_count(Model(self.spec))

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, where both are finite numbers."""
        # Earlier versions logged training's bits/dim as the loss, which it is.
        former = "train/loss" if name == "train/bits_per_dim" else name
        points = ((line.get("step"), line.get(name, line.get(former))) for line in self.metrics)
        return [(step, value) for step, value in points if number(step) and number(value)]

    def last(self, name: str, form: str) -> str | None:
        """The last logged value of a metric, formatted."""
        values = self.series(name)
        return f"{values[-1][1]:{form}}" if values else None

    @property
    def images_per_second(self) -> float | None:
        """The median over the log's windows, without the first, which has the warm-up of the machine."""
        values = [value for _, value in self.series("train/images_per_second")]
        return statistics.median(values[1:] or values) if values else None

    def of_kind(self, kind: type[Kind]) -> dict[Path, Kind]:
        """The results of a kind, by path."""
        return {path: found for path, found in self.results.items() if isinstance(found, kind)}

    @property
    def hours(self) -> float | None:
        """Hours of training steps alone: evaluation, samples and checkpoints are not in a step's time."""
        seconds, before = 0.0, 0
        for step, each in self.series("train/step_seconds"):
            seconds, before = seconds + each * (step - before), step
        return seconds / 3600 if before else None


def read(path: Path) -> RunFolder:
    """Read a run's folder. Raises UserError: it is not a run, or a file in it is damaged."""
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} is not a run: it has no config.yaml. Give the folder that training wrote.")
    config = _text(path / CONFIG)
    try:
        settings = parse(config)
    except UserError as error:
        raise UserError(f"{path / CONFIG} is not YAML ({error}). Restore it.") from error
    results = {file: result.read(file) for file in sorted((path / FOLDER).glob("*.json"))}
    return RunFolder(
        path,
        config,
        flattened(settings) if isinstance(settings, dict) else {},
        read_description(path) if (path / FILE).is_file() else None,
        next(iter(_objects([_text(path / "environment.json")])), {}),
        read_metrics(path / "metrics.jsonl"),
        {file: found for file, found in results.items() if found is not None},
    )


def number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none if there is no log."""
    return _objects(_text(path).splitlines())


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace") if path.is_file() else ""
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from error


def _objects(texts: list[str]) -> list[dict[str, Any]]:
    """Those of the texts that are JSON objects: a line may be cut short by a crash."""
    found = []
    for text in texts:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(text))
    return [content for content in found if isinstance(content, dict)]


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
    folders = (Path(model), Path(model).parent.parent) if model is not None else ()
    run = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
    if run is None:
        which = "these are no run's samples" if model is None else f"{model} is no run, and has no record of its data"
        raise UserError(f"{which}. Name a packed data set with --data.")
    settings = _settings(run)
    split = split or settings.get(f"{role}_split", role)
    if not isinstance(split, str):
        raise UserError(
            f"{run} was trained without held-out images (data.test_split: null). Name a split with --split, such as "
            "--split train, or other images with --data."
        )
    return Split(_opened(run, settings, split), split)


def _settings(run: Path) -> Mapping[str, Any]:
    """The section ``data`` of the run's configuration."""
    file = run / CONFIG
    try:
        settings = parse(file.read_bytes()[: MAX_BYTES + 1].decode())["data"]
        sources = [settings] if settings.get("path") else settings["mixture"]
        return {**settings, "paths": [str(source["path"]) for source in sources]}
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not say what the run was trained on. Name the data set with --data.") from error


def _opened(run: Path, settings: Mapping[str, Any], split: str) -> DataSets:
    """The run's data, which must have the shards that it has recorded."""
    where = ", ".join(settings["paths"])
    try:
        data = open_data(settings["paths"])
        for part in data.parts:
            part.check([split])
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


def held_out_pixels(run: RunFolder, data: str | None, count: int) -> tuple[Tensor, str]:
    """So many images ``(n, C, H, W)``, uint8 from 0 to 255, of the split that samples stand beside, at equal distances
    over it, and its name: the held-out one, if there is one.

    Args:
        data: the present place of the data; None: where the run has recorded them.

    Raises:
        UserError: they cannot be read.
    """
    split = open_split(run.path, data, run.split)
    count = min(count, len(split))
    images = range(0, len(split) // count * count, len(split) // count)
    return to_pixels(split.batch(images)[0], split.description.levels), split.name


def evaluated_pixels(run: RunFolder, data: str | None, found: NllResult, images: list[int]) -> Tensor:
    """The images of these numbers of the split that was evaluated, as :func:`held_out_pixels` gives them.
    Raises UserError: they cannot be read, or are not those that were evaluated."""
    split = open_split(run.path, data, found.split)
    if split_identity(split)["fingerprint"] != found.fingerprint:
        raise UserError(f"'{found.split}' has other shards than the result.")
    return to_pixels(split.batch(images)[0], split.description.levels)


def image_values(path: Path, found: NllResult) -> dict[str, Tensor]:
    """Bits/dim of single images ``(images,)``, in the split's order, by the name of the estimate.

    Nothing where the file beside the result is missing.

    Raises UserError: it is damaged.
    """
    file = path.with_suffix(".safetensors")
    try:
        values = load_file(file) if file.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}). Delete it, and evaluate again.") from error
    values = {name: values[name].double() for name in NllResult.TITLES if name in values}
    if any(bits.shape != (found.images,) or not bits.isfinite().all() for bits in values.values()):
        raise UserError(f"{file} does not have the values of {found.images} images. Evaluate again.")
    return values
