"""The files in a run's folder, for the report: every file may be missing, and none is trusted."""

import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fdtrain.checkpoint import store
from fdtrain.data.dataset import DatasetDescription, read_description
from fdtrain.errors import UserError
from fdtrain.evaluation import result
from fdtrain.evaluation.load import FOLDER
from fdtrain.evaluation.result import NllResult, Result, split_identity
from fdtrain.evaluation.run_data import open_split
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.strict_yaml import flattened, parse

Kind = TypeVar("Kind", bound=Result)


class Environment(BaseModel):
    """What the run was computed by; None where a version of fdtrain did not record it."""

    processes: int | None = None
    device: str | None = None
    fdtrain: str | None = None
    torch: str | None = None
    deepspeed: str | None = None
    python: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """The content of a run's files; ``results`` by path. What is missing is None or empty."""

    path: Path
    config: str
    dataset: DatasetDescription | None
    environment: Environment | None
    metrics: list[dict[str, Any]]
    results: dict[Path, Result]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: values by ``section.key``."""
        content = parse(self.config)
        return flattened(content) if isinstance(content, dict) else {}

    @cached_property
    def spec(self) -> ModelSpec | None:
        """Of the newest checkpoint's model; None before the first checkpoint.

        Raises:
            UserError: it is damaged.
        """
        newest = store.newest_step(self.path)
        return ModelSpec.load(newest / store.MODEL_FILE) if newest else None

    @cached_property
    def parameters(self) -> int | None:
        """How many numbers the network is made of, where there is a checkpoint."""
        if self.spec is None:
            return None
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in Model(self.spec).parameters())

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, where both are finite numbers."""
        points = ((line.get("step"), line.get(name)) for line in self.metrics)
        return [(step, value) for step, value in points if number(step) and number(value)]

    def last(self, name: str, form: str) -> str | None:
        """The last logged value of a metric, formatted."""
        values = self.series(name)
        return f"{values[-1][1]:{form}}" if values else None

    def held_out(self) -> dict[str, list[tuple[float, float, float]]]:
        """(step, bits/dim, standard error) while training, by the name of the split."""
        found: dict[str, list[tuple[float, float, float]]] = {}
        for line in self.metrics:
            for key in line:
                split, _, metric = key.rpartition("/")
                if metric != "bits_per_dim" or split == "train":
                    continue
                step, bits, error = line.get("step"), line[key], line.get(f"{split}/standard_error", 0.0)
                if number(step) and number(bits) and number(error):
                    found.setdefault(split, []).append((step, bits, error))
        return found

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
    """Read a run's folder.

    Raises:
        UserError: it is not a run, or a file in it is damaged.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run: it has no config.yaml. Give the folder that training wrote.")
    config = _text(path / "config.yaml")
    try:
        parse(config)
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'} is not YAML ({error}). Restore it.") from error
    results = {file: result.read(file) for file in sorted((path / FOLDER).glob("*.json"))}
    return RunFolder(
        path,
        config,
        _dataset(path / "dataset.json"),
        _environment(path / "environment.json"),
        read_metrics(path / "metrics.jsonl"),
        {file: found for file, found in results.items() if found is not None},
    )


def number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from error


def _dataset(path: Path) -> DatasetDescription | None:
    return read_description(path.parent) if path.is_file() else None


def _environment(path: Path) -> Environment | None:
    if not path.is_file():
        return None
    try:
        return Environment.model_validate_json(_text(path))
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({error.errors()[0]['msg']}). Restore it, or delete it.") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none if there is no log."""
    lines = []
    for line in _text(path).splitlines() if path.is_file() else []:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue  # A line cut short by a crash.
        if isinstance(content, dict):
            lines.append(content)
    return lines


def held_out_images(run: RunFolder, data: str | None, count: int) -> tuple[Tensor, int, str]:
    """So many images ``(n, C, H, W)`` of the split that samples stand beside, at equal distances over it, their number
    of levels, and its name: the held-out one, if there is one.

    Args:
        data: the present place of the data; None: where the run has recorded them.

    Raises:
        UserError: they cannot be read.
    """
    name = run.settings.get("data.test_split", "test") or run.settings.get("data.train_split", "train")
    split = open_split(run.path, data, str(name))
    count = min(count, len(split))
    return (
        split.batch(range(0, len(split) // count * count, len(split) // count))[0],
        split.description.levels,
        split.name,
    )


def evaluated_images(run: RunFolder, data: str | None, found: NllResult, images: list[int]) -> tuple[Tensor, int]:
    """The images of these numbers of the split that was evaluated, and their number of levels.

    Raises:
        UserError: they cannot be read, or are not those that were evaluated.
    """
    split = open_split(run.path, data, found.split)
    if split_identity(split)["fingerprint"] != found.fingerprint:
        raise UserError(f"'{found.split}' has other shards than the result.")
    return torch.cat([split.batch(range(i, i + 1))[0] for i in images]), split.description.levels


def image_values(path: Path, found: NllResult) -> dict[str, Tensor]:
    """Bits/dim of single images ``(images,)``, in the split's order, by the name of the estimate.

    Nothing where the file beside the result is missing.

    Raises:
        UserError: it is damaged.
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
