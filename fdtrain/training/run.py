"""What a run has beside what it trains: where it writes, how its step is shared, and who watches it."""

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
        problem = None
        try:
            self.monitor.begin(start)
        except OSError as error:
            problem = unwritable(error, self.folder)
        if problem := distributed.broadcast(problem):
            raise UserError(problem)
        if start:
            self.monitor.say(f"resuming after step {start} of {steps}")


def unwritable(error: OSError, folder: Path) -> str:
    """What a user is told of a run's folder that cannot be written."""
    return f"{error.filename or folder} cannot be written ({error.strerror}). Make room, or repair the disk."
