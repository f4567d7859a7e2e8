"""Grids of times that users give, and those optimised for a model, which lie beside it (docs/sampling.md)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fdtrain.diffusion.solvers import GRID, PUBLISHED, check_falling, parse_grid
from fdtrain.errors import UserError
from fdtrain.evaluation import result

FILE = "grids.json"
"""Of a run, an export or a checkpoint: ``{weights_sha256: {"SOLVER, N steps": times}}``."""
OPTIMISED = "optimised"
HELP = (
    f"spacing of the times: {GRID}, or with ends as {GRID}:0.005,0.07; {', '.join(PUBLISHED)}; times as 1,0.6,0.2,0, "
    f"or a file of them; or {OPTIMISED}: what fdtrain evaluate grid has found (default: {GRID})"
)


def read_grid(text: str | Sequence[float], option: str = "--grid") -> str | tuple[float, ...]:
    """A grid's name as it is, or the times of a list or a file, separated by commas or white space, or themselves.

    Raises:
        UserError: there is no such grid, or the times do not fall from 1 to 0.
    """
    try:
        if not isinstance(text, str):
            times = tuple(float(t) for t in text)
        elif os.sep in text or Path(text).is_file():
            times = _times(Path(text).read_text(), text)
        elif "," in text and ":" not in text:
            times = _times(text, text)
        else:
            if text != OPTIMISED:
                parse_grid(text)
            return text
        check_falling(times)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: cannot read {text} ({getattr(error, 'strerror', None) or error}).") from error
    except ValueError as error:
        raise UserError(f"{option}: {error}.") from error
    return times


def _times(words: str, source: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.strip().strip("[]").replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"{source} must hold times, numbers that fall from 1 to 0") from error


def load_optimised(folder: Path, weights_sha256: str, solver: str, steps: int) -> tuple[float, ...]:
    """The grid that was found for these weights.

    Raises:
        UserError: there is none yet, or its file is damaged.
    """
    times = _read(folder / FILE).get(weights_sha256, {}).get(_key(solver, steps))
    if times is None:
        raise UserError(
            f"--grid {OPTIMISED}: {folder} has none for these weights, {solver} and {steps} steps. First run "
            f"fdtrain evaluate grid {folder} --solver {solver} with as many evaluations."
        )
    return tuple(times)


def save_optimised(folder: Path, weights_sha256: str, solver: str, steps: int, times: Sequence[float]) -> Path:
    """Add a grid to those of a model.

    Raises:
        UserError: the file is damaged, or cannot be written.
    """
    path = folder / FILE
    grids = _read(path)
    grids.setdefault(weights_sha256, {})[_key(solver, steps)] = list(times)
    result.write(grids, path)
    return path


def _key(solver: str, steps: int) -> str:
    return f"{solver}, {steps} steps"


def _read(path: Path) -> dict[str, dict[str, list[float]]]:
    if not path.is_file():
        return {}
    try:
        grids = json.loads(path.read_text())
        for by_setting in grids.values():
            for times in by_setting.values():
                check_falling(times)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it, and run fdtrain evaluate grid again.") from error
    return grids
