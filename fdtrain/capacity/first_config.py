"""The configuration of a first run, written beside a packed data set (docs/own_images.md).

It follows from the images and the kind of device alone, by :data:`TABLE`, so it is the same on every machine.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from fdtrain.capacity.estimate import parameters
from fdtrain.capacity.spec import model_spec
from fdtrain.capacity.target import Target
from fdtrain.config import Config
from fdtrain.data.dataset import DatasetDescription
from fdtrain.errors import UserError
from fdtrain.files import write_text

FILE = "train.yaml"


class Choice(NamedTuple):
    """A network and its training: channels and multipliers of the levels, blocks of each; steps, images of a step, and
    the learning rate of AdamW at this width."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    steps: int
    batch: int
    lr: float


TABLE = {
    "cpu": {
        16: Choice(32, (1, 2), 2, 2000, 64, 2e-3),
        32: Choice(16, (1, 2, 2), 1, 2000, 32, 4e-3),
        64: Choice(16, (1, 2, 2, 2), 1, 2000, 16, 4e-3),
        128: Choice(16, (1, 1, 2, 2, 4), 1, 1000, 16, 4e-3),
        256: Choice(16, (1, 1, 2, 2, 4, 4), 1, 1000, 8, 4e-3),
    },
    "cuda": {
        16: Choice(128, (1, 2), 4, 10_000, 128, 2e-4),
        32: Choice(128, (1, 2, 2, 2), 4, 10_000, 128, 2e-4),
        64: Choice(64, (1, 2, 2, 2), 2, 20_000, 64, 6e-4),
        128: Choice(64, (1, 1, 2, 2, 4), 2, 20_000, 32, 6e-4),
        256: Choice(64, (1, 1, 2, 2, 4, 4), 2, 10_000, 16, 6e-4),
    },
}
"""By device and largest side of the images, in pixels. A run is at most 2e14 operations on a CPU and 1e17 on a GPU, an
hour at 50 GFLOP/s and at 28 TFLOP/s."""

ATTENTION = 16
"""Pixels: the first level that is no larger has self-attention."""
PRECISION = {"cpu": "fp32", "cuda": "bf16"}
FEW_STEPS, MANY_EPOCHS = 1000, 200
"""The fewest steps, and the passes through the images that are enough unless they are fewer steps."""
FEW_IMAGES = 100_000
"""A network that trains on fewer has dropout."""
WATCHING = 0.05
"""Largest share of the work for held-out bits/dim, and as much for samples."""
INTERVALS = 8
"""Checkpoints of a run, and the most sample grids and held-out bits/dim."""
SAMPLE_IMAGES, SAMPLE_STEPS = 36, 10
HELD_OUT_DRAWS = 500
"""Draws of all held-out images together: one draw of each of twenty says nothing yet."""


def here() -> Target:
    """The devices of this machine: its GPUs, a power of two of them, which can share the lanes; or its CPU."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Target("cuda", 1 << there.bit_length() - 1) if there else Target("cpu")


def write_first_config(folder: Path, description: DatasetDescription, target: Target) -> list[str]:
    """Write ``folder/train.yaml`` unless there is one, and return what to print: what it is, notes, and the commands.

    Raises:
        UserError: it cannot be written.
    """
    file, program = folder / FILE, "fdtrain" if Path(sys.argv[0]).name == "fdtrain" else "python -m fdtrain"
    processes = f" --processes {target.devices}" if target.devices > 1 else ""
    train = f"    {program} train{processes} --config {shlex.quote(str(file))}"
    if file.exists():
        stays = f"{file} is there already, and stays as it is; remove it for a new one. To train, or go on:"
        return [stays, f"{train} --resume auto"]
    plan = f"{program} plan {shlex.quote(str(file))} --for {target}"
    settings = first_settings(description, str(folder), target)
    config = Config.model_validate(settings)
    weights, images = parameters(model_spec(config, description)), description.images(config.data.train_split)
    colours = {1: "grey", 3: "RGB"}.get(description.channels, f"{description.channels} channels")
    training, size = config.training, description.size
    what = f"{weights / 1e6:.2g} M parameters, {training.steps:,} steps of {training.global_batch} images"
    head = [
        f"A first configuration for {folder}: {images:,} images of {size}x{size}, {colours}, on {target}.",
        f"{what}. What it takes: {plan}",
        "Change what you like: configs/template.yaml explains every choice, docs/configuration.md lists every key.",
        "A longer run is a better one, and a resumed one may be longer (training.steps).",
    ]
    if classes := len(description.classes):
        head.append(f"Its {classes} classes are given to the network by network.class_conditional: true.")
    try:
        content = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120)
        write_text(file, "".join(f"# {line}\n" for line in head) + content)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}). The data set itself is complete.") from error
    said = [f"{file}: {what}, for {target}"]
    largest, better = (64, 32) if target.device == "cpu" else (256, 256)
    if size > largest:
        said.append(f"note: {size}x{size} images are large for a first run on {target}. Pack smaller: --size {better}.")
    return [*said, "What it takes:", f"    {plan}", "To train:", train]


def first_settings(description: DatasetDescription, path: str, target: Target) -> dict[str, Any]:
    """The configuration for the data set at ``path``, without what is default."""
    size, rows = description.size, TABLE[target.device]
    row = next((row for side, row in rows.items() if size <= side), rows[max(rows)])
    train = "train" if "train" in description.splits else next(iter(description.splits))
    held_out = next((split for split in ("test", "valid") if split in description.splits and split != train), None)
    images = description.images(train)
    batch = max(row.batch, target.devices)
    steps = min(row.steps, max(FEW_STEPS, MANY_EPOCHS * images // batch))
    halvings = (size & -size).bit_length() - 1
    multipliers = row.multipliers[: halvings + 1]
    sides = [size // 2**level for level in range(len(multipliers))]
    # A training step of an image is three forward passes.
    monitor = {"log_every": steps // 100, "sample_every": _interval(steps, batch, SAMPLE_IMAGES * SAMPLE_STEPS / 3)}
    if held_out is not None:
        held_out_images = description.images(held_out)
        draws = -(-HELD_OUT_DRAWS // held_out_images)
        monitor |= {"evaluate_every": _interval(steps, batch, held_out_images * draws / 3), "evaluate_draws": draws}
    return {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", description.name).strip("._-") or "images",
        "data": {
            "path": path,
            "train_split": train,
            "test_split": held_out,
            "workers": 1 if target.device == "cpu" else 2,
        },
        "network": {
            "name": "ddpmpp",
            "channels": row.channels,
            "multipliers": list(multipliers),
            "blocks": row.blocks,
            "attention": [next((side for side in sides[1:] if side <= ATTENTION), sides[-1])],
            "dropout": 0.1 if images < FEW_IMAGES else 0.0,
            "class_conditional": False,
        },
        "training": {
            "steps": steps,
            "global_batch": batch,
            "precision": PRECISION[target.device],
            "lr": row.lr,
            "warmup_steps": steps // 20,
            "decay": "linear",
            "betas": [0.9, 0.99],
        },
        "ema": {"decay": round(min(0.9999, 1 - 8 / steps), 5)},
        "checkpoint": {"every": -(-steps // INTERVALS)},
        "monitor": {**monitor, "sample_images": SAMPLE_IMAGES, "sample_steps": SAMPLE_STEPS},
    }


def _interval(steps: int, batch: int, cost: float) -> int:
    """Steps between things that cost as much as training on so many images: as often as WATCHING allows, once at
    least."""
    return -(-steps // max(1, min(INTERVALS, int(WATCHING * steps * batch / cost))))
