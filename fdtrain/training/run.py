"""What a run has beside what it trains: where it writes, how its step is shared, who watches it, how fast it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fdtrain.capacity.layout import RunLayout
from fdtrain.errors import UserError
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import Heartbeat
from fdtrain.training.monitor import Monitor
from fdtrain.training.profile import Profiler


@dataclass(frozen=True)
class Utilisation:
    """What turns images/s into a share of the devices (docs/lab/performance.md): the counted operations of an image's
    training, without what checkpointing computes again, and the measured FLOP/s of matrix products, of all devices."""

    flops_per_image: int
    devices: int
    rate: float

    def speed(self, images_per_second: float) -> dict[str, float]:
        """Metrics of a window: whole and per device, and the model FLOPs utilisation of Chowdhery et al. 2022 (PaLM,
        appendix B), against the rate that was measured in place of the data sheet's. Above 1 that measurement was
        disturbed, by another program on the device or a clock that changed: then there is none."""
        flops = images_per_second * self.flops_per_image
        share = flops / self.rate
        return {
            "images_per_second": images_per_second,
            "images_per_second_per_device": images_per_second / self.devices,
            "gflop_per_image": self.flops_per_image / 1e9,
            "tflops_per_device": flops / self.devices / 1e12,
            **({"utilisation": share} if share <= 1 else {}),
        }


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


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes into a run's folder: that it cannot be written is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written ({error.strerror}). Make room, or repair the disk."
        ) from error
