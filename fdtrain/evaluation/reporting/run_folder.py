"""The files in a run's folder, for the report: every file may be missing, and none is trusted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from pydantic import BaseModel, ValidationError

from fdtrain.data.dataset import DatasetDescription, parse_description
from fdtrain.errors import UserError
from fdtrain.evaluation.reporting import result
from fdtrain.evaluation.reporting.result import Result
from fdtrain.strict_yaml import parse

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

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, where both are finite numbers."""
        points = ((line.get("step"), line.get(name)) for line in self.metrics)
        return [(step, value) for step, value in points if number(step) and number(value)]

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
    results = {file: result.read(file) for file in sorted((path / result.FOLDER).glob("*.json"))}
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
    return parse_description(_text(path), str(path)) if path.is_file() else None


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
