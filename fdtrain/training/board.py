"""TensorBoard's view of a run: what the run is, its pictures, and the curves of its log."""

import json
import math
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams

from fdtrain.training.dashboard import CHARTS, Dashboard, tag
from fdtrain.training.log_file import step_of

ROOM = 1 << 18
"""Bytes that a disk must have free for a new file."""


class Board:
    """Follows a log: events are made of its lines, so that those which a disk did not take are made again.

    TensorBoard's writer has a thread, for which nothing waits before the next call; it does not survive a write that
    fails. After one a new file begins, with the first step whose events were lost; pictures are lost for good.

    Args:
        folder: for the event files.
        log: the log, of whole lines.
        shown: what else is shown of the run.
    """

    def __init__(self, folder: Path, log: Path, shown: Dashboard | None):
        self.folder, self.log, self.shown = folder, log, shown
        self.writer: SummaryWriter | None = None

    def begin(self, step: int) -> None:
        """Show what the log has, or will have, of steps after ``step``; earlier events of such steps are void."""
        self.close()
        # The newest step that is shown, that which is on the disk, and up to where the log was read; lines of earlier
        # steps are passed over.
        self._step = self._written = step + 1
        self._end = 0

    def follow(self) -> None:
        """Show what is new in the log. Raises OSError: it will be at the next call."""
        with self._writing() as writer, self.log.open("rb") as log:
            log.seek(self._end)
            for line in log:
                self._end += len(line)
                if self._step <= step_of(line) < math.inf:
                    values = json.loads(line)
                    self._step = values.pop("step")
                    for name, value in values.items():
                        writer.add_scalar(tag(name), value, self._step)

    def image(self, name: str, pixels: np.ndarray | Tensor, step: int) -> None:
        """Show an image ``(C, H, W)`` uint8. Raises OSError."""
        with self._writing() as writer:
            writer.add_image(name, pixels, step, dataformats="CHW")

    def succeed(self, step: int) -> None:
        """The run has come to its last step. Raises OSError."""
        if self.shown is not None:
            with self._writing() as writer:
                writer._get_file_writer().add_summary(self._hyperparameters(self.shown)[2], step)

    def close(self) -> None:
        with suppress(OSError):
            if self.writer is not None:
                self.writer.close()
        self.writer = None

    @contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        try:
            if self.writer is None:
                self.writer = self._open()
            # What was given before: its thread has had the time.
            self.writer.flush()
            self._written = self._step
            yield self.writer
        except OSError:
            self.writer, self._step, self._end = None, self._written, 0
            raise

    def _open(self) -> SummaryWriter:
        self.folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(bytes(ROOM))
        writer = SummaryWriter(str(self.folder), max_queue=1000, purge_step=self._step)
        if self.shown is not None:
            writer.add_text("configuration", f"```yaml\n{self.shown.config}```", self._step)
            layout = {
                name: {title: ["Multiline", [e]] for title, e in charts.items()} for name, charts in CHARTS.items()
            }
            for summary in (custom_scalars(layout), *self._hyperparameters(self.shown)[:2]):
                # With the step: what is void of it is void of this too.
                writer._get_file_writer().add_summary(summary, self._step)
        return writer

    def _hyperparameters(self, shown: Dashboard):
        return hparams(shown.hyperparameters, dict.fromkeys(shown.metrics, 0.0))


def show_pictures(run: Path, step: int, pictures: dict[str, Path]) -> None:
    """Add PNG files to the TensorBoard of a run, by name, under ``evaluation``. Raises OSError."""
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for name, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(f"evaluation/{name}", np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def _report(args: threading.ExceptHookArgs, others=threading.excepthook) -> None:
    """The writer's thread ends with an error of the disk, which the next call to the writer raises."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        others(args)


threading.excepthook = _report
