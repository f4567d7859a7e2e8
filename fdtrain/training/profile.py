"""torch.profiler on some steps: a trace to look at, and now and then the share of a step spent communicating."""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile, record_function

from fdtrain import distributed
from fdtrain.errors import UserError
from fdtrain.training.metrics import Stopwatch

# The profiler's own messages, of no use to anybody.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

logger = logging.getLogger(__name__)

SAMPLED, EVERY = 10, 1000
"""Communication is measured in the tenth step, past the warm-up of everything, and a thousandth part of those after."""


def parse_steps(text: str | None, steps: int) -> range:
    """``"10:13"`` to the steps 10, 11, 12 and 13 of a run of ``steps``; None to no step.

    Raises:
        UserError: no such steps.
    """
    if text is None:
        return range(0)
    first, colon, last = text.partition(":")
    last = last if colon else first
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= steps):
        raise UserError(f"--profile {text}: expected FIRST:LAST, steps of this run's 1 to {steps}, such as 10:13.")
    return range(int(first), int(last) + 1)


class Profiler:
    """Around each step; see :meth:`step`. Rank 0 alone does anything.

    The steps ``traced``, counted from 1, make one trace in ``folder``. The watch is paused while a profiler starts and
    ends, which takes longer than a step.
    """

    def __init__(self, folder: Path, traced: range, device: torch.device, watch: Stopwatch):
        self.folder, self.traced, self.device, self.watch = folder, traced, device, watch
        self.communication: float | None = None
        self._trace: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step ``number``, the first being 1."""
        if distributed.rank() != 0:
            yield
        elif number in self.traced:
            # Begun in the middle when the run resumes there.
            if self._trace is None:
                self._trace = self._start(with_host=True)
            with record_function(f"step {number}"):
                yield
            if number == self.traced[-1]:
                self._export(self._trace)
                self._trace = None
        elif distributed.world_size() > 1 and number % EVERY == SAMPLED:
            sample = self._start(with_host=self.device.type == "cpu")
            yield
            self.communication = self._share(sample)
        else:
            yield

    def _start(self, with_host: bool) -> profile:
        kinds = [ProfilerActivity.CPU] if with_host else []
        if self.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        with self.watch.pause():
            self._synchronise()
            profiler = profile(activities=kinds)
            profiler.start()
        self._begun = self.watch.elapsed
        return profiler

    def _share(self, sample: profile) -> float:
        """Of the step's time, that in which the device did nothing but communicate."""
        self._synchronise()
        seconds = self.watch.elapsed - self._begun
        with self.watch.pause():
            sample.stop()
            # Of a GPU the kernels alone: the calls that launch them are recorded too.
            kind = DeviceType.CUDA if self.device.type == "cuda" else DeviceType.CPU
            events = [
                (e.name, e.time_range.start, e.time_range.end) for e in sample.events() or () if e.device_type == kind
            ]
        return alone(events, self.device.type) / 1e6 / seconds

    def _export(self, trace: profile) -> None:
        with self.watch.pause():
            self._synchronise()
            trace.stop()
            # The ending by which TensorBoard's plugin knows a trace; Perfetto reads any.
            file = self.folder / f"steps_{self.traced[0]}_{self.traced[-1]}.pt.trace.json"
            try:
                self.folder.mkdir(exist_ok=True)
                trace.export_chrome_trace(str(file))
            except OSError as error:
                # A sick disk costs the trace, not the run.
                logger.warning("warning: %s cannot be written (%s).", file, error.strerror)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def alone(events: Iterable[tuple[str, float, float]], device: str) -> float:
    """Time during which there is communication and nothing else: what overlap has not hidden.

    Args:
        events: name, start and end of what the profiler recorded.
        device: ``"cuda"``: kernels, NCCL's against all others; ``"cpu"``: Gloo's calls, during which the
            step waits.
    """
    if device == "cpu":
        return _covered((a, b) for name, a, b in events if name.startswith("gloo:"))
    events = list(events)
    return _covered((a, b) for _, a, b in events) - _covered(
        (a, b) for name, a, b in events if "nccl" not in name.lower()
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Time that lies in any of them."""
    covered, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered
