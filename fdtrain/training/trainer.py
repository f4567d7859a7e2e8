"""The loop: batch, loss, step, average, report, save."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ema_pytorch import EMA
from torch import Tensor

from fdtrain.config import Config
from fdtrain.data.lanes import own_lanes
from fdtrain.data.loader import Batches
from fdtrain.diffusion import objective
from fdtrain.errors import UserError
from fdtrain.networks.model import ModelSpec
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.training import checkpoint
from fdtrain.training import engine as ds
from fdtrain.training.draws import LaneDraws
from fdtrain.training.monitor import Monitor, Stopwatch, Window, memory_gib, window_metrics
from fdtrain.training.schedule import learning_rate


@dataclass(frozen=True)
class Report:
    """Something to do every so many steps, on every rank together: ``run(step)``."""

    every: int
    run: Callable[[int], None]


class Trainer:
    """Joins the parts of a run; see :meth:`run`.

    Args:
        config: the run's.
        spec: of the model, which the engine wraps.
        identity: the settings that fix its trajectory.
        reports: done at their intervals and after the last step.
    """

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        identity: dict[str, Any],
        engine: ds.Engine,
        ema: EMA,
        draws: LaneDraws,
        monitor: Monitor,
        reports: list[Report],
    ):
        self.config, self.spec, self.identity = config, spec, identity
        self.engine, self.ema, self.draws, self.monitor, self.reports = engine, ema, draws, monitor, reports
        self.device = draws.device
        self.window, self.watch = Window(self.device), Stopwatch()
        self.last_saved: Path | None = None
        training = config.training
        lanes = own_lanes(ds.rank(), ds.world_size(), training.lanes)
        size = len(lanes) // training.accumulation(ds.world_size())
        self.passes = [lanes[i : i + size] for i in range(0, len(lanes), size)]

    def resume(self, path: Path, state: checkpoint.State) -> None:
        """Take up the run where the checkpoint left it."""
        checkpoint.load(path, self.engine, self.ema)
        if ds.rank() == 0:
            self.window.sums.copy_(torch.tensor(state.window, dtype=torch.float64))
        self.last_saved = path

    def run(self, batches: Batches, start: int) -> None:
        """Train from step ``start`` to the last.

        Args:
            batches: this rank's, from step ``start`` on.

        Raises:
            UserError: a sample cannot be used, or the loss is not finite.
        """
        for done in self.steps(batches, start):
            last = done == self.config.training.steps
            with self.watch.pause():
                for report in self.reports:
                    if done % report.every == 0 or last:
                        report.run(done)
                if done % self.config.checkpoint.every == 0 or last:
                    self.save(done)

    def steps(self, batches: Batches, start: int) -> Iterator[int]:
        """Train, yielding the number of steps done after each."""
        last = self.config.training.steps
        self.watch.restart()
        for step in range(start, last):
            with self.watch.wait():
                images, labels = next(batches)
            self.window.add_broken(batches.broken_now)
            self._step(step, images, labels)
            done = step + 1
            self.monitor.progress()
            if done % self.config.monitor.log_every == 0 or done == last:
                self._log(done)
            yield done

    def _step(self, step: int, images: Tensor, labels: Tensor) -> None:
        """One optimiser step over this rank's images of it, ``(n, C, H, W)`` uint8."""
        # Dropout is the one thing random by rank: exact on the same number of ranks only.
        torch.manual_seed(torch_seed(self.config.seed, Purpose.DROPOUT, step, ds.rank()))
        rate = learning_rate(step, self.config.training)
        count = len(images) // len(self.passes)
        for i, lanes in enumerate(self.passes):
            part = slice(i * count, (i + 1) * count)
            self.engine.backward(self._loss(step, lanes, images[part], labels[part]))
            norm = self.engine.step(rate)
        self.ema.update()
        self.window.add_step(norm, first=ds.rank() == 0)

    def _loss(self, step: int, lanes: range, images: Tensor, labels: Tensor) -> Tensor:
        """Mean negative ELBO of one pass, nats per dimension."""
        spec, shape = self.spec, images.shape[1:]
        u = self.draws.quantiles(step, lanes)
        t = self.draws.density.quantile(u)
        pdf = self.draws.density.pdf(t).to(self.device)
        t = t.to(self.device)
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
        sums = ds.all_reduce_sum(self.window.sums).tolist()
        seconds = self.watch.elapsed
        metrics = window_metrics(sums)
        steps = sums[0]
        metrics |= {
            "lr": learning_rate(done - 1, self.config.training),
            "images_seen": done * self.config.training.global_batch,
            "images_per_second": steps * self.config.training.global_batch / seconds,
            "step_seconds": seconds / steps,
            "data_wait": self.watch.waited / seconds,
            "memory_gib": memory_gib(self.device),
        }
        self.monitor.log(done, metrics)
        self.monitor.show(done, metrics)
        self.window.sums.zero_()
        self.watch.restart()
        if not torch.isfinite(torch.tensor(metrics["loss"])):
            saved = f"the last checkpoint is {self.last_saved}" if self.last_saved else "there is no checkpoint yet"
            raise UserError(
                f"the loss is not finite within the {steps:.0f} steps up to {done}; {saved}. "
                "Lower training.lr, or train with another training.precision."
            )

    def save(self, done: int) -> None:
        """Checkpoint after ``done`` steps. Every rank must call it."""
        sums = ds.all_reduce_sum(self.window.sums)
        if ds.rank() != 0:
            sums.zero_()
        training = self.config.training
        state = checkpoint.State(
            step=done,
            images=done * training.global_batch,
            world_size=ds.world_size(),
            zero_stage=training.zero_stage,
            window=sums.tolist(),
            run=self.identity,
        )
        self.last_saved = checkpoint.save(
            self.config.folder, self.engine, self.ema, self.spec, state, self.config.checkpoint
        )
