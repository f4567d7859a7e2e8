"""What a run tells: the console, TensorBoard, metrics.jsonl. Rank 0 alone writes."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from fdtrain.config import Config
from fdtrain.console import watched
from fdtrain.errors import UserError, excerpt
from fdtrain.training.log_file import LogFile


class Monitor:
    """The writer on the ``first`` rank, 0. On others every call does nothing.

    A disk that is full or away while training goes on costs nothing of the log: it waits in memory.

    Args:
        about: what TensorBoard tells of the run beside its configuration (board.py).
    """

    def __init__(self, config: Config, first: bool, about: Mapping[str, str | int]):
        self.config, self.first, self.about, self.behind = config, first, about, False
        self.steps = config.training.steps
        self.newest: dict[str, float] = {}
        """The last value of each metric that was logged, on rank 0."""

    def begin(self, start: int) -> None:
        """Open the log, without what it has of steps after ``start``; before this only :meth:`say` may be called.

        Raises:
            OSError: the log cannot be begun.
        """
        if not self.first:
            return
        # Imported by the rank that writes alone: TensorBoard takes time and memory.
        from fdtrain.training.board import Board

        path = self.config.folder / "metrics.jsonl"
        path.touch()
        self.lengths = _lengths(path.read_bytes())
        self.lines = LogFile(path, self.lengths[-1][1])
        self.board = Board(self.config, self.about)
        self._follow_from(start)
        self._write()
        # A bar for people; whole lines where the output goes to a file.
        self.bar = tqdm(total=self.steps, initial=start, unit="step", dynamic_ncols=True, disable=not watched())

    def rewind(self, step: int) -> None:
        """The run goes back to ``step``: forget what was logged of later ones, which will be done again."""
        if self.first:
            self._follow_from(step)
            self.flush()
            self.bar.n = step

    def _follow_from(self, step: int) -> None:
        while self.lengths[-1][0] > step:
            self.lengths.pop()
        self.lines.cut(self.lengths[-1][1])
        self.board.begin(step)

    def succeed(self) -> None:
        """The run has come to its last step."""
        if self.first:
            self.board.succeed(self.steps)

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
        try:
            self._write()
        except OSError as error:
            if not self.behind:
                self.say(
                    f"fdtrain: warning: the log cannot be written ({error}); it waits in memory. Training goes on."
                )
            self.behind = True
            return
        if self.behind:
            self.say("fdtrain: the log is written again.")
        self.behind = False

    def _write(self) -> None:
        self.lines.flush()
        self.board.file.flush()

    def progress(self) -> None:
        if self.first:
            self.bar.update()

    def log(self, step: int, metrics: dict[str, float], prefix: str = "train") -> None:
        """Write metrics of ``step`` to metrics.jsonl under ``prefix``, and to TensorBoard in its groups."""
        if self.first:
            named = {f"{prefix}/{name}": value for name, value in metrics.items()}
            self.newest |= named
            self.lines.write(json.dumps({"step": step, **named}).encode() + b"\n")
            self.lengths.append((step, len(self.lines)))
            self.board.log(step, named)
            self.flush()

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """The console's line for a training window."""
        if not self.first:
            return
        shown = {
            "bits/dim": f"{metrics.get('bits_per_dim', math.nan):.4f}",
            "images/s": f"{metrics['images_per_second']:.1f}",
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

    def close(self) -> None:
        if self.first:
            self.bar.close()
            self.flush()
            if self.behind:
                lost = self.lines.waiting.count(b"\n")
                self.say(f"fdtrain: warning: the log of {lost} intervals is lost.")


def _lengths(content: bytes) -> list[tuple[float, int]]:
    """Of a log: the step of each whole line with the bytes up to its end, after those of none."""
    lengths, end = [(-math.inf, 0)], 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        with suppress(ValueError, KeyError, TypeError):
            if line.endswith(b"\n"):
                lengths.append((json.loads(line)["step"], end))
    return lengths


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes into a run's folder: that it cannot be written is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{excerpt(error.filename or folder)} cannot be written ({error.strerror}). Make room, repair the disk or "
            "its permissions, or choose another 'output'."
        ) from error
