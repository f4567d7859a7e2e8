"""The loop: batch, loss, step, average, callbacks, checkpoint."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.checkpoint import retention, store
from fdtrain.checkpoint.writer import FAILED, WRITING, CheckpointWriter
from fdtrain.config import Config, dump_config
from fdtrain.data.loader import Batches, lost_workers_reported
from fdtrain.diffusion.clocks import SoftTruncation
from fdtrain.diffusion.objective import Bound, bits_per_dim
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.errors import Preempted, UserError
from fdtrain.lock import GONE
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import Heartbeat
from fdtrain.training import memory
from fdtrain.training.batch_noise import BatchNoise, PassInputs
from fdtrain.training.compilation import as_compiled
from fdtrain.training.hardware import exact_float32, memory_gib
from fdtrain.training.metrics import Utilisation
from fdtrain.training.monitor import Monitor, writing
from fdtrain.training.profile import Profiler
from fdtrain.training.schedule import learning_rate
from fdtrain.training.state import HostCopy, TrainState, rollback_target

STOP = "stop"
"""The flag that asks all ranks to save and end."""
FLAGS = (STOP, WRITING, FAILED, GONE)
COLLECT_EVERY = 100
"""Steps between collections of Python's garbage: the same ones on every rank, or each would wait for all others'."""


class Launch(NamedTuple):
    """What the processes of a launch have before there is a run: this one's device, the consensus by which all stop
    after the same step, and the heartbeat, which is told of progress."""

    device: torch.device
    consensus: Consensus
    heartbeat: Heartbeat


@contextmanager
def collecting_when_asked() -> Iterator[None]:
    """Python's garbage is collected by :func:`gc.collect` alone, which passes over what there is by now."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Diverged(Exception):
    """Too many steps in a row had to be skipped: the number of the last one, and how many they are."""


class Trainer:
    """Joins the parts of a run; see :meth:`train`.

    Args:
        shown: on the CPU, for evaluation alone; what callbacks are given, with the averaged weights.
        batches: this rank's of some draws, from a step on.
        callbacks: numbers of steps, and what is run every so many and after the last, with the averaged model.
    """

    def __init__(
        self,
        config: Config,
        launch: Launch,
        state: TrainState,
        monitor: Monitor,
        profiler: Profiler,
        utilisation: Utilisation,
        shown: Model,
        draws: BatchNoise,
        batches: Callable[[BatchNoise, int], Batches[list[PassInputs]]],
        callbacks: list[tuple[int, Callable[[int, Model], None]]],
    ):
        self.config, self.heartbeat, self.state = config, launch.heartbeat, state
        self.engine, self.layout, self.shown = state.engine, state.layout, shown
        self.monitor, self.profiler, self.utilisation = monitor, profiler, utilisation
        self.draws, self.batches, self.callbacks = draws, batches, callbacks
        saving = config.checkpoint
        retain = partial(retention.retain, keep_last=saving.keep_last, keep_every=saving.keep_every)
        self.writer = CheckpointWriter(config.folder, saving.max_failures, retain, launch.consensus, monitor.say)
        self.start = 0
        """The step from which to train."""
        self.save_pause = 0.0

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, whatever number of ranks wrote it."""
        self.start = self.state.load(path)
        self.writer.last = path

    def train(self) -> None:
        """Train to the last step.

        Raises:
            UserError: the log cannot be begun, a sample cannot be used, too many steps had to be skipped, or too many
                checkpoints failed.
            Preempted: the run was asked to stop, and is saved.
            NotSaved: the last checkpoint could not be written.
        """
        with distributed.told_to_all(), writing(self.config.folder):
            self.monitor.begin(self.start)
        if self.start:
            self.monitor.say(f"resuming after step {self.start} of {self.config.training.steps}")
        try:
            with lost_workers_reported(), collecting_when_asked():
                while True:
                    try:
                        self._train()
                        return self.monitor.succeed()
                    except Diverged as error:
                        self._roll_back(*error.args)
        finally:
            self.monitor.close()

    def _train(self) -> None:
        if self.layout.rank == 0:
            retention.forget_after(self.config.folder, self.start, store.AVERAGES)
        for done in self.steps():
            last = done == self.config.training.steps
            stop = STOP in self.writer.exchange() and not last
            with self.profiler.watch.pause():
                if stop:
                    # First of all: there may not be time for more.
                    self.save(done, final=True)
                self._call_back(done, last)
                if not stop:
                    self.save(done, final=last)
            if done % COLLECT_EVERY == 0:
                gc.collect()
            if stop:
                raise Preempted(
                    f"stopped as asked after step {done}; saved {self.writer.last}. "
                    "--resume auto goes on, in Python resume=True."
                )

    def steps(self) -> Iterator[int]:
        """Train, yielding the number of steps done after each."""
        last = self.config.training.steps
        draws = self.draws.redrawn(self.state.rollbacks)
        batches = self.batches(draws, self.start)
        self.skips = HostCopy(self.engine.guard.skips)
        self.profiler.watch.restart()
        for step in range(self.start, last):
            done = step + 1
            with self.profiler.step(done):
                with self.profiler.watch.wait():
                    passes = next(batches)
                self.heartbeat.tick()
                self.state.sums.add_broken(batches.broken_now)
                self._step(step, passes, draws.at(step)[1])
            self.monitor.progress()
            if done % self.config.monitor.log_every == 0 or done == last:
                self._log(done)
            yield done

    def _step(self, step: int, passes: list[PassInputs], bound: Bound) -> None:
        """One optimiser step over this rank's images of it, and the bound of these."""
        # Dropout is the one thing random by rank: exact on the same number of ranks only.
        torch.manual_seed(torch_seed(self.config.seed, Purpose.DROPOUT, step, self.layout.rank))
        rate = learning_rate(step, self.config.training)
        for inputs in passes:
            loss = self._loss(inputs.to(self.engine.device), bound)
            # A loss that is not finite must not pass for one whose gradient is.
            self.engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan))
            self.engine.step(rate)
        for average in self.state.averages:
            average.update()
        self.state.sums.add_step(self.engine.norm, self.engine.skipped)
        # Of the step before: for this one the host does not wait.
        if (skips := int(self.skips.read())) > self.config.training.max_skips:
            raise Diverged(step, skips)
        self.skips = HostCopy(self.engine.guard.skips)

    def _loss(self, inputs: PassInputs, bound: Bound) -> Tensor:
        """Mean of what one pass trains on, per dimension."""
        spec, weighting = self.engine.model.spec, WEIGHTINGS[self.config.diffusion.weighting]
        field = self.engine.field(inputs.label if spec.classes else None)
        loss = bound.loss(field, inputs.x0, inputs.eps, inputs.t, inputs.pdf, weighting)
        # The integrand: bits/dim without the constant of the discrete likelihood.
        integrand = bits_per_dim(loss.correction.detach(), spec.dims, 2)
        self.state.sums.add_pass(spec.bound.bits_per_dim(loss.nelbo.detach(), spec.dims), integrand, inputs.t)
        return loss.train.mean() / spec.dims

    def _call_back(self, done: int, last: bool) -> None:
        due = [report for every, report in self.callbacks if done % every == 0 or last]
        if due:
            averaged = self.state.averages[0].in_model(self.shown, self.engine.device)
            images = f"in float32 and of up to {self.layout.micro_batch} images at a time"
            fits = memory.fitting(f"an evaluation beside the training, {images},", memory.EVALUATION)
            with fits, averaged, exact_float32(), as_compiled(self.shown):
                for report in due:
                    report(done, self.shown)

    def _log(self, done: int) -> None:
        """Write the means since the last line, and begin anew."""
        profiler, global_batch = self.profiler, self.config.training.global_batch
        metrics = self.state.sums.read()
        if not isinstance(self.draws.density, SoftTruncation):
            # Of which times the bound is; its batches have intervals of their own.
            metrics |= self.engine.model.spec.bound.ends()
        steps, seconds = profiler.watch.steps, profiler.watch.elapsed
        metrics |= {
            "lr": learning_rate(done - 1, self.config.training),
            "images_seen": done * global_batch,
            **self.utilisation.speed(steps * global_batch / seconds),
            "step_seconds": seconds / steps,
            "data_wait": profiler.watch.waited / seconds,
            "save_pause": self.save_pause,
            "memory_gib": memory_gib(self.engine.device),
        }
        if profiler.communication is not None:
            metrics["communication"] = profiler.communication
        self.monitor.log(done, metrics)
        self.monitor.show(done, metrics)
        self.save_pause = 0.0
        profiler.watch.restart()

    def save(self, done: int, final: bool = False) -> None:
        """Begin to write what is due after ``done`` steps, if anything is; or write a ``final`` checkpoint, which no
        other will follow. Every rank must call it.

        Raises:
            NotSaved: the final one could not be written.
        """
        every, scheduled = self.config.snapshot_every, done % self.config.checkpoint.every == 0
        # The averages first, so that a run that resumes has them.
        series = [store.AVERAGES] if every and done % every == 0 else []
        series += [store.CHECKPOINTS] if scheduled or final else []
        if not series:
            return
        # What is logged up to here must outlive the process as the checkpoint will.
        self.monitor.flush()
        due = self.state.snapshot(done, series, dump_config(self.config), scheduled)
        if final:
            self.writer.save_final(due, self.config.checkpoint.retry_timeout_s)
        else:
            self.save_pause += self.writer.begin(due)

    def _roll_back(self, step: int, skips: int) -> None:
        """Go back to the last sound scheduled checkpoint, to go on from there with other draws."""
        self.writer.finish()
        folder, most = self.config.folder, self.config.training.max_rollbacks
        rollbacks = self.state.rollbacks + 1
        reason = f"the gradient was unusable in {skips} steps in a row up to step {step}"
        advice = "Lower training.lr, or train with another training.precision."
        # One after which no step has succeeded may be the cause. The first time it is tried with other draws.
        stalled = step - skips if rollbacks > min(1, most) else None
        path = rollback_target(folder, stalled)
        if path is None:
            raise UserError(f"{reason}; there is no checkpoint to return to. {advice}")
        if rollbacks > most:
            raise UserError(
                f"{reason}, after {most} returns to a checkpoint; the last is {path}. {advice} "
                f"{folder / 'metrics.jsonl'} has the course."
            )
        self.resume(path)
        self.state.rollbacks = rollbacks
        self.monitor.rewind(self.start)
        self.monitor.say(
            f"fdtrain: warning: {reason}; back to {path.name} with other draws (return {rollbacks} of {most})."
        )
