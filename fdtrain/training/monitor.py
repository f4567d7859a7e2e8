"""What a run tells: the console, TensorBoard, metrics.jsonl. Rank 0 writes, the others count.

Sums are kept on the device and read once per window of steps, so that logging does not stop the
accelerator in between.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

QUANTILES = 10
"""Equal parts of the time distribution that the integrand is reported over."""

# Layout of the window's sums.
STEPS, BITS, IMAGES, NORM, NORMS, BROKEN = range(6)
PARTS = 6
FIELDS = PARTS + 2 * QUANTILES


class MetricSums:
    """Sums over the steps since the last log line, float64 on the device; summed over ranks when read."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(FIELDS, dtype=torch.float64, device=device)

    def add_images(self, bits: Tensor, correction: Tensor, quantile: Tensor) -> None:
        """One pass: bits/dim and integrand (bits/dim) of each image, and the quantile ``u`` of its time.

        Images whose bound is not finite are left out of the means, as their steps are of the training.
        """
        finite = torch.isfinite(bits)
        part = (quantile * QUANTILES).long().clamp_(max=QUANTILES - 1).to(self.sums.device, non_blocking=True)
        self.sums[BITS] += torch.where(finite, bits, 0.0).sum()
        self.sums[IMAGES] += finite.sum()
        self.sums[PARTS : PARTS + QUANTILES].index_add_(0, part, torch.where(finite, correction, 0.0).double())
        self.sums[PARTS + QUANTILES :].index_add_(0, part, finite.double())

    def add_broken(self, samples: int) -> None:
        """Broken samples of one step that others stand in for."""
        if samples:
            self.sums[BROKEN] += samples

    def add_step(self, gradient_norm: Tensor, left_out: Tensor, first: bool) -> None:
        """One step, and whether it was left out; both are the same on every rank, so only the ``first`` counts."""
        if first:
            self.sums[STEPS] += 1
            self.sums[NORM] += torch.where(left_out > 0, 0.0, gradient_norm)
            self.sums[NORMS] += 1 - left_out


def window_metrics(sums: list[float]) -> dict[str, float]:
    """Means of a window's sums over ranks: bits/dim (if of any image), gradient norm, steps left out, integrand by
    time quantile."""
    metrics = {
        **({"loss": sums[BITS] / sums[IMAGES]} if sums[IMAGES] else {}),
        "gradient_norm": sums[NORM] / max(1.0, sums[NORMS]),
        "skipped_steps": sums[STEPS] - sums[NORMS],
        "broken_samples": sums[BROKEN],
    }
    for part in range(QUANTILES):
        if count := sums[PARTS + QUANTILES + part]:
            metrics[f"integrand/{part}"] = sums[PARTS + part] / count
    return metrics


class Stopwatch:
    """Time per step and its share spent waiting for data; pauses for what is not training."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.paused = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.paused += time.perf_counter() - begin

    @contextmanager
    def wait(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    @property
    def elapsed(self) -> float:
        """Seconds of training since the restart."""
        return time.perf_counter() - self.start - self.paused


def memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the accelerator, or of this process on the CPU. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Monitor:
    """The writer. On ranks other than 0 every call does nothing."""

    def __init__(self, folder: Path, steps: int, start: int, first: bool):
        self.first, self.steps, self.lossy = first, steps, False
        if not first:
            return
        self.file, self.boards = folder / "metrics.jsonl", folder / "tensorboard"
        self._open_after(start)
        # A bar for people; whole lines where the output goes to a file.
        self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def _open_after(self, step: int) -> None:
        """Forget what was logged of later steps, which will be done again."""
        self.board = SummaryWriter(self.boards, purge_step=step + 1)
        if self.file.exists():
            kept = [line for line in self.file.read_text().splitlines() if _step_of_line(line) <= step]
            aside = self.file.with_suffix(".new")
            aside.write_text("".join(f"{line}\n" for line in kept))
            os.replace(aside, self.file)

    def rewind(self, step: int) -> None:
        """The run goes back to ``step``."""
        if self.first:
            self.board.close()
            self._open_after(step)
            self.bar.n = step

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """Around what is written for people: a disk that is full or away costs the log, not the run."""
        try:
            yield
        except OSError as error:
            if not self.lossy:
                self.say(f"fdtrain: warning: the log has gaps from here on ({error}). Training goes on.")
            self.lossy = True

    def flush(self) -> None:
        """Give what was logged to the operating system."""
        if self.first:
            with self.tolerant():
                self.board.flush()

    def progress(self) -> None:
        if self.first:
            self.bar.update()

    def log(self, step: int, metrics: dict[str, float], prefix: str = "train") -> None:
        """Write metrics of ``step`` to TensorBoard under ``prefix`` and to metrics.jsonl."""
        if not self.first:
            return
        with self.tolerant():
            for name, value in metrics.items():
                self.board.add_scalar(f"{prefix}/{name}", value, step)
        with self.tolerant(), self.file.open("a") as file:
            file.write(json.dumps({"step": step, **{f"{prefix}/{k}": v for k, v in metrics.items()}}) + "\n")

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """The console's line for a training window."""
        if not self.first:
            return
        shown = {
            "bits/dim": f"{metrics.get('loss', math.nan):.4f}",
            "images/s": f"{metrics['images_per_second']:.0f}",
            "util": f"{metrics['utilisation']:.0%}",
            "grad": f"{metrics['gradient_norm']:.2f}",
            "lr": f"{metrics['lr']:.1e}",
            "data": f"{metrics['data_wait']:.1%}",
        }
        if "communication" in metrics:
            shown["comm"] = f"{metrics['communication']:.1%}"
        if self.bar.disable:
            left = (self.steps - step) * metrics["step_seconds"]
            fields = "  ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"step {step}/{self.steps}  {fields}  left {tqdm.format_interval(left)}")
        else:
            self.bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """A line on the console, above the bar."""
        if self.first:
            self.bar.write(text, file=sys.stderr)

    def image(self, step: int, name: str, pixels: Tensor) -> None:
        """An image ``(C, H, W)`` uint8 for TensorBoard."""
        if self.first:
            with self.tolerant():
                self.board.add_image(name, pixels, step)

    def text(self, name: str, text: str) -> None:
        if self.first:
            self.board.add_text(name, text)

    def close(self) -> None:
        if self.first:
            self.bar.close()
            with self.tolerant():
                self.board.close()


def show_pictures(run: Path, step: int, pictures: dict[str, Path]) -> None:
    """Add PNG files to the TensorBoard of a run, by name, under ``evaluation``."""
    with SummaryWriter(run / "tensorboard") as board:
        for name, path in pictures.items():
            with Image.open(path) as picture:
                board.add_image(f"evaluation/{name}", np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def _step_of_line(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        # A line cut short by a crash.
        return float("inf")
