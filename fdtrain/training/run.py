"""What a run has beside what it trains: where it writes, how its step is shared, and who watches it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fdtrain import distributed
from fdtrain.capacity.layout import RunLayout
from fdtrain.errors import UserError
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import Heartbeat
from fdtrain.training.monitor import Monitor
from fdtrain.training.profile import Profiler
from fdtrain.training.utilisation import Utilisation


@dataclass(frozen=True)
class Run:
    """The same on every rank, but for its place in ``layout``."""

    folder: Path
    layout: RunLayout
    monitor: Monitor
    consensus: Consensus
    """By which the ranks stop after the same step."""
    heartbeat: Heartbeat
    """Told of progress."""
    profiler: Profiler
    utilisation: Utilisation

    def begin(self, start: int, steps: int) -> None:
        """Begin the log at a step of ``steps``.

        Raises:
            UserError: on every rank, if it cannot be written.
        """
        with distributed.told_to_all(), writing(self.folder):
            self.monitor.begin(start)
        if start:
            self.monitor.say(f"resuming after step {start} of {steps}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes into a run's folder: that it cannot be written is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written ({error.strerror}). Make room, or repair the disk."
        ) from error
