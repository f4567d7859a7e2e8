"""What a run tells: the console, TensorBoard, metrics.jsonl. Rank 0 alone writes."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fdtrain import files
from fdtrain.training.dashboard import Dashboard, tag
from fdtrain.training.record_file import RecordFile


class Monitor:
    """The writer. On ranks other than 0 every call does nothing.

    A disk that is full or away while training goes on costs nothing of the log: it waits in memory.

    Args:
        folder: the run's.
        steps: of the whole run.
        first: whether this is rank 0.
        dashboard: what TensorBoard shows of the run besides its log.
    """

    def __init__(self, folder: Path, steps: int, first: bool, dashboard: Dashboard | None = None):
        self.folder, self.steps, self.first, self.behind = folder, steps, first, False
        self.dashboard = dashboard

    def begin(self, start: int) -> None:
        """Open the log, without what it has of steps after ``start``; before this only :meth:`say` may be called.

        Raises:
            OSError: the log cannot be begun.
        """
        if not self.first:
            return
        self.lines = RecordFile(self.folder / "metrics.jsonl")
        _drop_later_lines(self.lines.path, start)
        self.board = _board(self.folder / "tensorboard", start + 1)
        self._describe(start)
        self.board.flush()
        # A bar for people; whole lines where the output goes to a file.
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=self.steps, initial=start, unit="step", dynamic_ncols=True, disable=hidden)

    def rewind(self, step: int) -> None:
        """The run goes back to ``step``: forget what was logged of later ones, which will be done again."""
        if self.first:
            self.lines.forget_after(step, _size_up_to(self.lines.path, step))
            self.board.rewind(step + 1)
            self._describe(step)
            self.flush()
            self.bar.n = step

    def _describe(self, start: int) -> None:
        # With the steps that it holds for: what is void of them is void of this too.
        if self.dashboard is not None:
            self.board.describe(self.dashboard, start + 1)

    def succeed(self) -> None:
        """The run has come to its last step."""
        if self.first and self.dashboard is not None:
            self.board.succeed(self.dashboard, self.steps)

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """Around what is written for people alone: a disk that is full or away costs it, not the run."""
        try:
            yield
        except OSError as error:
            self.say(f"fdtrain: warning: {error.filename or 'a picture'} cannot be written ({error.strerror}).")

    def flush(self) -> None:
        """Give what was logged to the operating system, or keep it until that takes it."""
        if not self.first:
            return
        problem = None
        for file in (self.lines, self.board.file):
            try:
                file.write()
            except OSError as error:
                problem = error
        if problem is not None and not self.behind:
            self.say(f"fdtrain: warning: the log cannot be written ({problem}); it waits in memory. Training goes on.")
        elif problem is None and self.behind:
            lost = self.lines.dropped + self.board.file.dropped
            self.say("fdtrain: the log is written again" + (f"; its {lost} oldest entries are lost." if lost else "."))
        self.behind = problem is not None

    def progress(self) -> None:
        if self.first:
            self.bar.update()

    def log(self, step: int, metrics: dict[str, float], prefix: str = "train") -> None:
        """Write metrics of ``step`` to metrics.jsonl under ``prefix``, and to TensorBoard in its groups."""
        if not self.first:
            return
        for name, value in metrics.items():
            self.board.scalar(tag(f"{prefix}/{name}"), value, step)
        line = json.dumps({"step": step, **{f"{prefix}/{k}": v for k, v in metrics.items()}}) + "\n"
        self.lines.add(step, line.encode())
        self.flush()

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """The console's line for a training window."""
        if not self.first:
            return
        shown = {
            "bits/dim": f"{metrics.get('bits_per_dim', math.nan):.4f}",
            "images/s": f"{speed:.0f}" if (speed := metrics["images_per_second"]) >= 10 else f"{speed:.1f}",
            "util": f"{metrics['utilisation']:.0%}" if "utilisation" in metrics else "disturbed",
            "grad": f"{metrics['gradient_norm']:.2f}",
            "lr": f"{metrics['lr']:.1e}",
            "data": f"{metrics['data_wait']:.1%}",
        }
        if "communication" in metrics:
            shown["comm"] = f"{metrics['communication']:.1%}"
        if self.bar.disable:
            left = (self.steps - step) * metrics["step_seconds"]
            fields = "  ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"step {step}/{self.steps}  {fields}  left {tqdm.format_interval(left)}")
        else:
            self.bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """A line on the console, above the bar."""
        if self.first:
            tqdm.write(text, file=sys.stderr)

    def image(self, step: int, name: str, pixels: Tensor) -> None:
        """An image ``(C, H, W)`` uint8 for TensorBoard."""
        if self.first:
            self.board.image(name, pixels, step)
            self.flush()

    def close(self) -> None:
        if self.first:
            self.bar.close()
            self.flush()
            if self.behind:
                self.say(f"fdtrain: warning: the log of {len(self.lines.waiting)} intervals is lost.")


def show_pictures(run: Path, step: int, pictures: dict[str, Path]) -> None:
    """Add PNG files to the TensorBoard of a run, by name, under ``evaluation``. Raises OSError."""
    board = _board(run / "tensorboard")
    for name, path in pictures.items():
        with Image.open(path) as picture:
            board.image(f"evaluation/{name}", np.asarray(picture.convert("RGB")).transpose(2, 0, 1), step)
    board.flush()


def _board(folder: Path, start: int | None = None):
    # Imported by the rank that writes alone: TensorBoard takes time and memory.
    from fdtrain.training.board import Board

    return Board(folder, start)


def _drop_later_lines(file: Path, step: int) -> None:
    """Drop from a log what is of steps after ``step``, and what a crash or an earlier version left by half."""
    if file.exists():
        lines = file.read_bytes().splitlines(keepends=True)
        wanted = [line for line in lines if line.endswith(b"\n") and _step_of_line(line) <= step]
        if wanted != lines:
            files.write_atomically(file, lambda temporary: temporary.write_bytes(b"".join(wanted)))


def _size_up_to(file: Path, step: int) -> int | None:
    """Bytes of a log before the first line of a step after ``step``; None where the file cannot be read."""
    size = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                if _step_of_line(line) > step:
                    break
                size += len(line)
    except OSError:
        return None
    return size


def _step_of_line(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        # A line cut short by a crash.
        return float("inf")
