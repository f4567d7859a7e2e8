"""What a run's folder says of itself, for the report: every file may be missing, none is believed to be ours."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdtrain.errors import UserError
from fdtrain.evaluation.reporting.result import FOLDER
from fdtrain.strict_yaml import parse


@dataclass(frozen=True)
class RunFolder:
    """Files of a run as they were read; ``results`` by path. What was missing is empty."""

    path: Path
    config: str
    dataset: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[Path, dict[str, Any]]

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, the finite numbers of it."""
        points = ((line.get("step"), line.get(name)) for line in self.metrics)
        return [(step, value) for step, value in points if number(step) and number(value)]

    def of_kind(self, kind: str) -> dict[Path, dict[str, Any]]:
        return {path: result for path, result in self.results.items() if result.get("kind") == kind}

    @property
    def hours(self) -> float | None:
        """Of training steps alone: evaluation, samples and checkpoints are not in a step's time."""
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
    results = {file: _json(file) for file in sorted((path / FOLDER).glob("*.json"))}
    return RunFolder(
        path,
        config,
        *(_json(path / name) if (path / name).is_file() else {} for name in ("dataset.json", "environment.json")),
        _metrics(path / "metrics.jsonl"),
        results,
    )


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it, and make it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (not an object). Delete it, and make it again.")
    return content


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in _text(path).splitlines() if path.is_file() else []:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue  # A line cut short by a crash.
        if isinstance(content, dict):
            lines.append(content)
    return lines
