"""Grids of times that users give, and those optimised for a model, which lie beside it (docs/sampling.md)."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fdtrain.diffusion.solvers import GRID, PUBLISHED, check_falling, parse_grid
from fdtrain.errors import UserError
from fdtrain.files import write_text

FIRST_MOVE = 0.5
"""Of a time, as a share of the way to its neighbour; halved when a round finds nothing."""
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
    if not isinstance(text, str):
        times = tuple(float(t) for t in text)
        _checked(lambda: check_falling(times), option)
        return times
    words = text
    if os.sep in text or Path(text).is_file():
        try:
            words = Path(text).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{option}: cannot read {text} ({getattr(error, 'strerror', None) or error}).") from error
    elif ":" in text or "," not in text:
        if text != OPTIMISED:
            _checked(lambda: parse_grid(text), option)
        return text
    try:
        times = tuple(float(word) for word in words.strip().strip("[]").replace(",", " ").split())
    except ValueError as error:
        raise UserError(f"{option}: {text} must hold times, numbers that fall from 1 to 0.") from error
    _checked(lambda: check_falling(times), option)
    return times


def _checked(check: Callable[[], object], option: str) -> None:
    try:
        check()
    except ValueError as error:
        raise UserError(f"{option}: {error}.") from error


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
    try:
        write_text(path, json.dumps(grids, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}).") from error
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


def search(
    distance: Callable[[tuple[float, ...]], float], starts: Sequence[tuple[float, ...]], rounds: int
) -> tuple[tuple[float, ...], float]:
    """Pattern search: one inner time after the other moves towards a neighbour, as long as that helps.

    A time stays between its neighbours, so that every grid on the way falls strictly. The search draws nothing.

    Args:
        distance: of the solver's result on a grid, from what it should be; not a number counts as infinite.
        starts: grids of equal length.
        rounds: over all inner times.

    Returns:
        The best grid and its distance.
    """

    def measured(times: tuple[float, ...]) -> float:
        value = distance(times)
        return value if value == value else float("inf")

    best, times = min((measured(times), times) for times in starts)
    move = FIRST_MOVE
    for _ in range(rounds):
        improved = False
        for i in range(1, len(times) - 1):
            for neighbour in (times[i - 1], times[i + 1]):
                moved = (*times[:i], times[i] + move * (neighbour - times[i]), *times[i + 1 :])
                value = measured(moved)
                if value < best:
                    best, times, improved = value, moved, True
                    break
        if not improved:
            move /= 2
    return times, best
