"""TensorBoard's events, written as soon as they are flushed and never by half.

TensorBoard's own writer has a thread that dies with the first write that fails, and leaves half a record, behind which
nothing of the file can be read.
"""

import io
import os
import socket
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from fdtrain.training.dashboard import LAYOUT, Dashboard
from fdtrain.training.record_file import RecordFile


class Board:
    """An event file of its own in a folder of TensorBoard's. Nothing is written before :meth:`flush`.

    Args:
        folder: which is made.
        start: events of this step and later ones in the folder's other files are void; None: all are valid.
    """

    def __init__(self, folder: Path, start: int | None = None):
        folder.mkdir(exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = RecordFile(folder / name)
        self._add(Event(file_version="brain.Event:2"))
        if start is not None:
            self._begin(start)

    def rewind(self, start: int) -> None:
        """Events of ``start`` and later ones are void."""
        self.file.forget_after(start - 1)
        self._begin(start)

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add_summary(summary.scalar(name, value), step)

    def image(self, name: str, pixels: np.ndarray | Tensor, step: int) -> None:
        """An image ``(C, H, W)`` uint8."""
        self._add_summary(summary.image(name, pixels, dataformats="CHW"), step)

    def describe(self, dashboard: Dashboard, step: int) -> None:
        """The configuration, the layout of the charts and the hyperparameters, all valid from ``step`` on."""
        self._add_summary(summary.text("configuration", f"```yaml\n{dashboard.config}```"), step)
        self._add_summary(summary.custom_scalars(LAYOUT), step)
        experiment, begun, _ = self._hyperparameters(dashboard)
        self._add_summary(experiment, step)
        self._add_summary(begun, step)

    def succeed(self, dashboard: Dashboard, step: int) -> None:
        """The run is complete."""
        self._add_summary(self._hyperparameters(dashboard)[2], step)

    def _hyperparameters(self, dashboard: Dashboard) -> tuple[Summary, Summary, Summary]:
        return summary.hparams(dashboard.hyperparameters, dict.fromkeys(dashboard.metrics, 0.0))

    def flush(self) -> None:
        """Raises OSError; what could not be written waits."""
        self.file.write()

    def _begin(self, start: int) -> None:
        self._add(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def _add_summary(self, content: Summary, step: int) -> None:
        self._add(Event(step=step, summary=content))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        # A file's first events must not be dropped with those of a step that is done again.
        self.file.add(event.step if event.HasField("summary") else 0, buffer.getvalue())
