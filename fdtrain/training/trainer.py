"""The loop: batch, loss, step, average, report, save."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.checkpoint import store
from fdtrain.checkpoint.writer import FAILED, WRITING, CheckpointWriter, Retention
from fdtrain.config import Config, dump_config
from fdtrain.data.lanes import own_lanes
from fdtrain.data.loader import Batches
from fdtrain.diffusion import objective
from fdtrain.errors import Preempted, UserError
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import Heartbeat
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.ema import Average
from fdtrain.training.engine import Engine
from fdtrain.training.hardware import exact_float32
from fdtrain.training.monitor import MetricSums, Monitor, Stopwatch, memory_gib, window_metrics
from fdtrain.training.profile import Profiler
from fdtrain.training.schedule import learning_rate
from fdtrain.training.utilisation import Utilisation

STOP = "stop"
"""The flag that asks all ranks to save and end."""
FLAGS = (STOP, WRITING, FAILED)


class Diverged(Exception):
    """Too many steps in a row had to be skipped."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step
        """The last of them."""


@dataclass(frozen=True)
class Callback:
    """Something to do every so many steps, on every rank together: ``run(step, averaged model)``."""

    every: int
    run: Callable[[int, Model], None]


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint says of the run that wrote it."""

    spec: ModelSpec
    settings: dict[str, Any]
    """Those that fix the trajectory."""
    code: str | None
    """Commit of the program."""


class Trainer:
    """Joins the parts of a run; see :meth:`run`.

    Args:
        config: the run's.
        batches: this rank's, from a step on.
        reports: done at their intervals and after the last step.
        consensus: by which the ranks stop after the same step.
        heartbeat: told of progress.
        accounting: of the run's devices.
        traced: steps, counted from 1, to trace into the run's folder.
    """

    def __init__(
        self,
        config: Config,
        identity: RunIdentity,
        engine: Engine,
        average: Average,
        draws: BatchNoise,
        batches: Callable[[int], Batches],
        monitor: Monitor,
        reports: list[Callback],
        consensus: Consensus,
        heartbeat: Heartbeat,
        accounting: Utilisation,
        traced: range = range(0),
    ):
        self.config, self.identity, self.spec = config, identity, identity.spec
        self.engine, self.average, self.monitor, self.reports = engine, average, monitor, reports
        self.first_draws = self.draws = draws
        self.batches, self.consensus, self.heartbeat = batches, consensus, heartbeat
        self.accounting, self.device = accounting, draws.device
        self.window, self.watch = MetricSums(self.device), Stopwatch()
        self.profiler = Profiler(config.folder / "profile", traced, self.device, self.watch)
        keep = config.checkpoint
        self.saver = CheckpointWriter(
            config.folder, Retention(keep.keep_last, keep.keep_every, keep.max_failures), consensus, monitor.say
        )
        self.returns = self.skips = 0
        self.save_pause = 0.0
        self.left_out: Tensor | None = None
        training = config.training
        lanes = own_lanes(distributed.rank(), distributed.world_size(), training.lanes)
        size = len(lanes) // training.accumulation(distributed.world_size())
        self.passes = [lanes[i : i + size] for i in range(0, len(lanes), size)]

    def load(self, path: Path) -> int:
        """Go on from a checkpoint, whatever number of ranks wrote it; returns its step."""
        state, parts = store.read_state(path), store.open_parts(path)
        if len(state.window) != len(self.window.sums):
            raise UserError(f"{path / store.STATE_FILE} has a log window of another version. Resume from another.")
        self.engine.load(parts, state.counters)
        self.average.load(parts, state.step)
        self.window.sums.zero_()
        if distributed.rank() == 0:
            self.window.sums.copy_(torch.tensor(state.window, dtype=torch.float64))
        self.skips, self.left_out, self.returns = state.skips, None, state.returns
        self.draws = self.first_draws.redrawn(self.returns)
        self.saver.last = path
        return state.step

    def run(self, start: int) -> None:
        """Train from step ``start`` to the last.

        Raises:
            UserError: a sample cannot be used, too many steps had to be left out, or too many checkpoints failed.
            Preempted: the run was asked to stop, and is saved.
        """
        while True:
            try:
                self._run(start)
                return
            except Diverged as error:
                start = self._roll_back(error.step)

    def _run(self, start: int) -> None:
        for done in self.steps(start):
            last = done == self.config.training.steps
            stop = STOP in self.saver.exchange() and not last
            with self.watch.pause():
                if stop:
                    # First of all: there may not be time for more.
                    self.save(done)
                    self.saver.finish()
                self._report(done, last)
                if (done % self.config.checkpoint.every == 0 or last) and not stop:
                    self.save(done)
            if stop:
                raise Preempted(f"stopped as asked after step {done}; saved {self.saver.last}. --resume auto goes on.")
        self.saver.finish()

    def steps(self, start: int) -> Iterator[int]:
        """Train, yielding the number of steps done after each."""
        last = self.config.training.steps
        batches = self.batches(start)
        self.watch.restart()
        for step in range(start, last):
            done = step + 1
            with self.profiler.step(done):
                with self.watch.wait():
                    images, labels = next(batches)
                self.heartbeat.tick()
                self.window.add_broken(batches.broken_now)
                self._step(step, images, labels)
            self.monitor.progress()
            if done % self.config.monitor.log_every == 0 or done == last:
                self._log(done)
            yield done

    def _report(self, done: int, last: bool) -> None:
        due = [report for report in self.reports if done % report.every == 0 or last]
        if due:
            with self.average.gathered(self.device) as model, exact_float32():
                for report in due:
                    report.run(done, model)

    def _step(self, step: int, images: Tensor, labels: Tensor) -> None:
        """One optimiser step over this rank's images of it, ``(n, C, H, W)`` uint8."""
        # Dropout is the one thing random by rank: exact on the same number of ranks only.
        torch.manual_seed(torch_seed(self.config.seed, Purpose.DROPOUT, step, distributed.rank()))
        rate = learning_rate(step, self.config.training)
        count = len(images) // len(self.passes)
        for i, lanes in enumerate(self.passes):
            part = slice(i * count, (i + 1) * count)
            loss = self._loss(step, lanes, images[part], labels[part])
            # A loss that is not finite must not pass for one whose gradient is.
            self.engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan))
            self.engine.step(rate)
        self.average.update()
        self.window.add_step(self.engine.norm, self.engine.left_out, first=distributed.rank() == 0)
        if self._skips_in_a_row() > self.config.training.max_skips:
            raise Diverged(step)
        self.left_out = self.engine.left_out

    def _skips_in_a_row(self) -> int:
        """Steps left out in a row. Asked once the next step is under way, it does not wait for the device."""
        if self.left_out is not None:
            self.skips = self.skips + 1 if self.left_out.item() else 0
            self.left_out = None
        return self.skips

    def _roll_back(self, step: int) -> int:
        """Go back to the last sound checkpoint, and on from there with other draws; returns its step."""
        self.saver.finish()
        reason = f"the gradient was unusable in {self.skips} steps in a row up to step {step}"
        advice = "Lower training.lr, or train with another training.precision."
        folder, most = self.config.folder, self.config.training.max_rollbacks
        returns = self.returns + 1
        # One after which no step has succeeded may be the cause. The first time it is tried with other draws.
        useless = step - self.skips if returns > min(1, most) else None
        path = distributed.broadcast(_return(folder, useless) if distributed.rank() == 0 else None)
        if path is None:
            raise UserError(f"{reason}; there is no checkpoint to return to. {advice}")
        if returns > most:
            raise UserError(
                f"{reason}, after {most} returns to a checkpoint; the last is {path}. {advice} "
                f"{folder / 'metrics.jsonl'} has the course."
            )
        start = self.load(path)
        self.returns, self.draws = returns, self.first_draws.redrawn(returns)
        self.monitor.rewind(start)
        self.monitor.say(
            f"fdtrain: warning: {reason}; back to {path.name} with other draws (return {returns} of {most})."
        )
        return start

    def _loss(self, step: int, lanes: range, images: Tensor, labels: Tensor) -> Tensor:
        """Mean negative ELBO of one pass, nats per dimension."""
        spec, shape = self.spec, images.shape[1:]
        u = self.draws.quantiles(step, lanes)
        t = self.draws.density.quantile(u)
        # Never a copy that waits: the host is to run ahead of the device.
        pdf = self.draws.density.pdf(t).to(self.device, non_blocking=True)
        t = t.to(self.device, non_blocking=True)
        x0 = objective.dequantise(
            images.to(self.device, non_blocking=True), self.draws.dequantisation(step, lanes, shape), spec.levels
        )
        label = self._label(step, lanes, labels) if spec.classes else None
        correction = objective.correction(
            lambda x, t: self.engine.forward(x, t, label), x0, self.draws.noise(step, lanes, shape), t, pdf
        )
        nelbo = objective.normal_nll(x0) + correction
        with torch.no_grad():
            bits = objective.bits_per_dim(nelbo, spec.dims, spec.levels)
            # Integrand: bits/dim without the constant of the discrete likelihood.
            self.window.add_images(bits, objective.bits_per_dim(correction, spec.dims, 2), u)
        return nelbo.mean() / spec.dims

    def _label(self, step: int, lanes: range, labels: Tensor) -> Tensor:
        """Labels of one pass, the dropped ones replaced by the null class."""
        if self.spec.null_class:
            dropped = self.draws.dropped_labels(step, lanes, self.config.network.label_dropout)
            labels = labels.masked_fill(dropped, self.spec.null_label)
        return labels.to(self.device, non_blocking=True)

    def _log(self, done: int) -> None:
        """Read the window's sums, the only place where the host waits for the device, and start a new one."""
        sums = distributed.all_reduce_sum(self.window.sums).tolist()
        seconds = self.watch.elapsed
        metrics = window_metrics(sums)
        steps = sums[0]
        metrics |= {
            "lr": learning_rate(done - 1, self.config.training),
            "images_seen": done * self.config.training.global_batch,
            **self.accounting.speed(steps * self.config.training.global_batch / seconds),
            "step_seconds": seconds / steps,
            "data_wait": self.watch.waited / seconds,
            "save_pause": self.save_pause,
            "memory_gib": memory_gib(self.device),
        }
        if self.profiler.communication is not None:
            metrics["communication"] = self.profiler.communication
        self.monitor.log(done, metrics)
        self.monitor.show(done, metrics)
        self.save_pause = 0.0
        self.window.sums.zero_()
        self.watch.restart()

    def save(self, done: int) -> None:
        """Begin a checkpoint after ``done`` steps. Every rank must call it."""
        sums = distributed.all_reduce_sum(self.window.sums)
        if distributed.rank() != 0:
            sums.zero_()
        training = self.config.training
        state = store.State(
            step=done,
            images=done * training.global_batch,
            world_size=distributed.world_size(),
            zero_stage=self.engine.stage,
            window=sums.tolist(),
            skips=self._skips_in_a_row(),
            returns=self.returns,
            counters=self.engine.counters(),
            run=self.identity.settings,
            code=self.identity.code,
        )
        # What is logged up to here must outlive the process as the checkpoint will.
        self.monitor.flush()
        fragments = self.engine.fragments + self.average.fragments
        self.save_pause += self.saver.begin(fragments, self.spec, dump_config(self.config), state)


def _return(folder: Path, useless: int | None) -> Path | None:
    """The newest sound checkpoint of a run folder that a run in trouble may go back to, made the newest of all: what
    came later would outrank it when the run resumes. That of the step ``useless`` serves if there is no earlier one."""

    def fits(path: Path) -> None:
        if reason := store.trouble(path):
            raise UserError(reason)

    def fits_and_is_earlier(path: Path) -> None:
        fits(path)
        if store.step_of(path) >= useless:
            raise UserError("no step after it succeeded")

    path = None if useless is None else store.newest(folder, fits_and_is_earlier)[0]
    path = path or store.newest(folder, fits)[0]
    if path is not None:
        store.return_to(path)
    return path
