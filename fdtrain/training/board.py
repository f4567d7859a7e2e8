"""TensorBoard's view of a run: what the run is, its curves and its pictures."""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter, summary

from fdtrain.training.dashboard import CHARTS, Dashboard, tag
from fdtrain.training.log_file import LogFile


class Board:
    """An event file, beside those of earlier processes. TensorBoard's own writer has a thread, which does not survive a
    full disk."""

    def __init__(self, folder: Path, shown: Dashboard | None):
        folder.mkdir(exist_ok=True)
        # TensorBoard reads them in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
        self.file, self.shown = LogFile(folder / name), shown
        self.records = RecordWriter(self.file)
        self._add(0, file_version="brain.Event:2")

    def begin(self, step: int) -> None:
        """Go on after ``step``: what was shown of later ones is void."""
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
        if self.shown is not None:
            layout = {
                name: {title: ["Multiline", [e]] for title, e in charts.items()} for name, charts in CHARTS.items()
            }
            config = summary.text("configuration", f"```yaml\n{self.shown.config}```")
            for each in (config, summary.custom_scalars(layout), *_hyperparameters(self.shown)[:2]):
                # With the step: what is void of it is void of this too.
                self._add(step + 1, summary=each)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(step, summary=summary.scalar(tag(name), value))

    def image(self, name: str, pixels: Tensor, step: int) -> None:
        """An image ``(C, H, W)`` uint8."""
        self._add(step, summary=summary.image(name, pixels, dataformats="CHW"))

    def succeed(self, step: int) -> None:
        """The run has come to its last step."""
        if self.shown is not None:
            self._add(step, summary=_hyperparameters(self.shown)[2])

    def _add(self, step: int, **what) -> None:
        self.records.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())


def _hyperparameters(shown: Dashboard):
    return summary.hparams(shown.hyperparameters, dict.fromkeys(shown.metrics, 0.0))


def show_pictures(run: Path, step: int, pictures: dict[str, Path]) -> None:
    """Add PNG files to the TensorBoard of a run, by name, under ``evaluation``. Raises OSError."""
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for name, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(f"evaluation/{name}", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
