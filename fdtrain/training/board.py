"""TensorBoard's view of a run: curves in groups, charts that belong together, settings beside results, pictures."""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter, summary

from fdtrain.config import Config, dump_config
from fdtrain.strict_yaml import flattened
from fdtrain.training.log_file import LogFile

SPEED = """images_per_second images_per_second_per_device step_seconds gflop_per_image tflops_per_device utilisation
communication data_wait save_pause memory_gib"""
"""The metrics of ``train/`` that say how fast it goes, not what is learnt."""

CHARTS = {
    "Likelihood": {
        "bits/dim, training batches": "train/bits_per_dim$",
        "bits/dim, held-out images, averaged weights": "(?!train/).*/bits_per_dim$",
        "parts of the bound by tenth of the time": "integrand/",
    },
    "Samples": {"Frechet distance": "frechet/"},
    "Optimisation": {
        "gradient norm": "train/gradient_norm$",
        "learning rate": "train/lr$",
        "skipped steps, broken samples": "train/(skipped_steps|broken_samples)$",
    },
    "Speed": {
        "images/s": "speed/images_per_second$",
        "shares": "speed/(utilisation|communication|data_wait)$",
        "memory, GiB": "speed/memory_gib$",
    },
}
"""Charts of the tab of custom scalars by title, in categories; each has the tags that its expression matches."""

SETTINGS = """network.name network.class_conditional network.dropout diffusion.predictor diffusion.interval
diffusion.time_density diffusion.time_sampling diffusion.weighting diffusion.decoder training.optimizer training.lr
training.muon_lr training.global_batch training.steps training.warmup_steps training.decay training.weight_decay
training.grad_clip training.precision ema.decay seed"""
"""The keys of the configuration that are hyperparameters. Those of every network alone: TensorBoard takes the columns
of its table from one run."""


class Board:
    """An event file, beside those of earlier processes. TensorBoard's own writer has a thread, which does not survive a
    full disk.

    Args:
        about: what else stands among the hyperparameters; ``features`` are those of Frechet distances.
    """

    def __init__(self, config: Config, about: Mapping[str, str | int]):
        folder = config.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        # TensorBoard reads them in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
        self.file = LogFile(folder / name)
        self.records = RecordWriter(self.file)
        self._add(0, file_version="brain.Event:2")
        charts = {
            category: {title: ["Multiline", [tags]] for title, tags in of_category.items()}
            for category, of_category in CHARTS.items()
        }
        *hyperparameters, self.success = summary.hparams(*_table(config, about))
        text = summary.text("configuration", f"```yaml\n{dump_config(config)}```")
        self.introduction = [text, summary.custom_scalars(charts), *hyperparameters]

    def begin(self, step: int) -> None:
        """Go on after ``step``: what was shown of later ones is void."""
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
        for each in self.introduction:
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
        self._add(step, summary=self.success)

    def _add(self, step: int, **what) -> None:
        self.records.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())


def tag(name: str) -> str:
    """The tag ``GROUP/NAME`` of a metric of the log: ``train`` has too many for one group."""
    prefix, _, metric = name.partition("/")
    if prefix == "train" and metric.startswith("integrand/"):
        return metric
    return f"speed/{metric}" if prefix == "train" and metric in SPEED.split() else name


def _table(config: Config, about: Mapping[str, str | int]) -> tuple[dict[str, float | str], dict[str, float]]:
    """A run's hyperparameters, and the tags whose last values stand beside them."""
    settings = flattened(config.model_dump(mode="json"))
    chosen: dict[str, Any] = {**about, **{key: settings.get(key) for key in SETTINGS.split()}}
    # A column holds numbers or texts.
    columns = {key: value if type(value) in (int, float) else str(value) for key, value in chosen.items()}
    metrics = [f"{config.data.test_split}/bits_per_dim"] if config.monitor.evaluate_every else []
    metrics += ["train/bits_per_dim"] + ([f"frechet/{about['features']}"] if config.monitor.frechet_every else [])
    return columns, dict.fromkeys(metrics, 0.0)


def show_pictures(run: Path, step: int, pictures: dict[str, Path]) -> None:
    """Add PNG files to the TensorBoard of a run, by name, under ``evaluation``. Raises OSError."""
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for name, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(f"evaluation/{name}", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
