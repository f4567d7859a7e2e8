"""A first configuration for a data set and a machine: what a person tries before knowing better.

The choice is two tables and four rules, all below. A network's shape follows from the images' side, its width from what
the machine computes in :data:`MINUTES`: the widest that sees enough images in that time, as is measured. Precision is
the one that the machine trains it fastest in, and a pass has as many images as fit into memory.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fdtrain.capacity.cost import Activations, activations, flops
from fdtrain.capacity.estimate import muons, parameters, state_memory
from fdtrain.capacity.layout import zero_stage
from fdtrain.capacity.spec import model_spec
from fdtrain.config import Config
from fdtrain.data.dataset import DatasetDescription
from fdtrain.networks.model import ModelSpec


class Width(NamedTuple):
    """Channels at full resolution, blocks of a level, images of a step, and the learning rate of such a network."""

    channels: int
    blocks: int
    batch: int
    lr: float


WIDTHS = (
    Width(128, 4, 128, 2e-4),
    Width(64, 2, 128, 6e-4),
    Width(32, 2, 64, 2e-3),
    Width(16, 1, 64, 4e-3),
)
"""From the published DDPM++ down to what a laptop trains in minutes."""

MULTIPLIERS = {
    16: (1, 2),
    32: (1, 2, 2, 2),
    64: (1, 2, 2, 2),
    128: (1, 1, 2, 2, 4),
    256: (1, 1, 2, 2, 4, 4),
}
"""Width of each level, for images up to this side; larger ones have those of the largest."""
ATTENTION = 16
"""Pixels: the first level that is no larger has self-attention."""

MINUTES = {"cpu": 8, "cuda": 60}
"""Of training, on any machine of the kind."""
TRIED = 0.05
"""Seconds at the whole matrix rate of a pass by which a network's speed is measured, at most."""
FEW_STEPS = 1000
"""A run of fewer has smaller batches instead."""
MEMORY = {"cpu": 0.5, "cuda": 0.7}
"""Share of the memory that counted tensors may take: gaps, workspaces and other programs have the rest."""
WATCHING = 0.05
"""Largest share of the time for held-out bits/dim, and as much for samples."""
INTERVALS = 8
"""Checkpoints of a run, and the most sample grids and held-out bits/dim."""
SAMPLE_IMAGES, SAMPLE_STEPS = 36, 20
FEW_IMAGES = 100_000
"""A network that trains on fewer has dropout; and every run should see as many, if not all different."""


@dataclass(frozen=True)
class Machine:
    """What a run can use.

    Args:
        device: "cpu" or "cuda".
        count: of devices: processes of the run.
        memory: bytes of one device.
        rates: FLOP/s of matrix products of one device, by precision: no network trains as fast.
        speed: images/s of a network (the first argument) that trains on one device at a precision in passes of so many
            images, with or without checkpointing.
    """

    device: str
    count: int
    memory: int
    rates: dict[str, float]
    speed: Callable[[ModelSpec, str, int, bool], float]


@dataclass(frozen=True)
class Suggestion:
    """A configuration and what it will take.

    Args:
        settings: the configuration, without what is default.
        seconds: of the whole run.
        memory: bytes of one device.
    """

    settings: dict[str, Any]
    config: Config
    parameters: int
    images: int
    seconds: float
    memory: int
    notes: tuple[str, ...]


def suggest(description: DatasetDescription, path: str, machine: Machine) -> Suggestion:
    """The first configuration for the data set at ``path``."""
    train = "train" if "train" in description.splits else next(iter(description.splits))
    images = description.images(train)
    enough = min(10**6, max(FEW_IMAGES, 50 * images))

    def trial_of(width: Width, checkpointing: bool) -> _Trial:
        return _Trial(description, _settings(description, path, train, width, checkpointing, machine), machine)

    for width in WIDTHS:
        wanted = 0 if width == WIDTHS[-1] else enough
        for checkpointing in (False, True):
            trial = trial_of(width, checkpointing)
            if trial.seen(trial.bound) < wanted:
                break
            if best := max(trial.passes(wanted), key=lambda found: found.speed, default=None):
                if trial.seen(best.speed) >= wanted:
                    return trial.suggestion(images, best)
                break
    # Nothing fits, which a note says.
    return trial_of(WIDTHS[-1], checkpointing=True).suggestion(images, None)


class _Pass(NamedTuple):
    """How one device trains: at a precision, in passes of so many images, which save so much, at so many images/s."""

    precision: str
    images: int
    saved: Activations
    speed: float


class _Trial:
    """One network on the machine."""

    def __init__(self, description: DatasetDescription, settings: dict[str, Any], machine: Machine):
        self.description, self.settings, self.machine = description, settings, machine
        self.config = Config.model_validate(settings)
        self.spec = model_spec(self.config, description)
        self.parameters = parameters(self.spec)
        stage = zero_stage(self.config.training, machine.count)
        by_muon = muons(self.config.training, self.spec)
        self.state = state_memory(self.parameters, stage, machine.count, muons=by_muon).total
        self.checkpointing = self.config.network.checkpointing
        self.operations = flops(self.spec).training(self.checkpointing)
        self.bound = max(machine.rates.values()) / self.operations
        """Images/s of one device that no utilisation exceeds."""

    def seen(self, speed: float) -> float:
        """Images in the time of a first run, at so many a second on each device."""
        return speed * self.machine.count * 60 * MINUTES[self.machine.device]

    def passes(self, wanted: float) -> Iterator[_Pass]:
        """Those that fit into memory, at every precision that may see as many images as are wanted."""
        for precision, rate in self.machine.rates.items():
            bound = rate / self.operations
            if self.seen(bound) < wanted:
                continue
            saved = activations(self.spec, precision, self.checkpointing)
            if images := self._fitting(saved):
                tried = max(1, min(images, int(TRIED * bound)))
                speed = self.machine.speed(self.spec, precision, tried, self.checkpointing)
                yield _Pass(precision, images, saved, speed)

    def _fitting(self, saved: Activations) -> int:
        """Images of a pass: the most that fit, halved from a rank's share; 0 if a lane's do not fit."""
        training = self.config.training
        room = MEMORY[self.machine.device] * self.machine.memory - self.state
        images = training.global_batch // self.machine.count
        while images >= training.lane_images:
            if saved.bytes(images) <= room:
                return images
            images //= 2
        return 0

    def suggestion(self, train_images: int, best: _Pass | None) -> Suggestion:
        """With all that follows from the time there is; None: a pass of no size fits."""
        training, monitor, count = self.config.training, self.settings["monitor"], self.machine.count
        if best is None:
            saved = activations(self.spec, training.precision, self.checkpointing)
            chosen = _Pass(training.precision, training.lane_images, saved, self.bound)
        else:
            chosen = best
        seen = min(self.seen(chosen.speed), max(FEW_IMAGES, 200 * train_images))
        batch = training.global_batch
        while seen / batch < FEW_STEPS and batch > training.lanes:
            batch //= 2
        steps = max(100, _round(seen / batch))
        micro = min(chosen.images, batch // count)
        self.settings["training"] |= {"steps": steps, "global_batch": batch, "precision": chosen.precision}
        self.settings["training"] |= {"warmup_steps": min(5000, steps // 20)}
        if micro < batch // count:
            self.settings["training"]["micro_batch"] = micro
        self.settings["ema"]["decay"] = round(min(0.9999, 1 - 8 / steps), 5)
        seen = steps * batch
        # A training step is three forward passes.
        monitor["log_every"] = max(1, _round(steps / 100))
        monitor["sample_every"] = _interval(steps, WATCHING * seen, SAMPLE_IMAGES * SAMPLE_STEPS / 3)
        if self.config.data.test_split is not None:
            held_out = self.description.images(self.config.data.test_split)
            monitor["evaluate_every"] = _interval(steps, WATCHING * seen, held_out / 3)
        self.settings["checkpoint"]["every"] = -(-steps // INTERVALS)
        return Suggestion(
            self.settings,
            Config.model_validate(self.settings),
            self.parameters,
            seen,
            seen / (count * chosen.speed) * (1 + 2 * WATCHING),
            self.state + chosen.saved.bytes(micro),
            tuple(self._notes(seen, train_images, fits=best is not None)),
        )

    def _notes(self, seen: int, train_images: int, fits: bool) -> Iterator[str]:
        size, levels = self.description.size, len(self.settings["network"]["multipliers"])
        wanted = len(_multipliers(size))
        if levels < wanted and size // 2 ** (levels - 1) > ATTENTION:
            better = size // 2 ** (wanted - 1) * 2 ** (wanted - 1)
            yield f"{size} pixels can be halved only {levels - 1} times; --resize {better} gives a better network."
        if not fits:
            yield "this may not fit into memory. Pack smaller images with --resize."
        elif seen < max(10**4, train_images):
            yield (
                f"{size}x{size} images are large for this machine: in this time it trains on {seen:,} only. Pack "
                "smaller ones with --resize, train for longer, or use a GPU."
            )


def _settings(
    description: DatasetDescription,
    path: str,
    train: str,
    width: Width,
    checkpointing: bool,
    machine: Machine,
) -> dict[str, Any]:
    """What does not depend on the time of the run."""
    size = description.size
    multipliers = _multipliers(size)[: _halvings(size) + 1]
    levels = [size // 2**i for i in range(len(multipliers))]
    held_out = next((split for split in ("test", "valid") if split in description.splits and split != train), None)
    network = {
        "name": "ddpmpp",
        "channels": width.channels,
        "multipliers": list(multipliers),
        "blocks": width.blocks,
        "attention": [next((level for level in levels[1:] if level <= ATTENTION), levels[-1])],
        "dropout": 0.1 if description.images(train) < FEW_IMAGES else 0.0,
        "class_conditional": False,
    }
    if checkpointing:
        network["checkpointing"] = True
    return {
        "name": _run_name(description.name),
        "data": {
            "path": path,
            "train_split": train,
            "test_split": held_out,
            "workers": 1 if machine.device == "cpu" else 2,
        },
        "network": network,
        "training": {
            "steps": 1,
            "global_batch": width.batch,
            "lanes": 64 if machine.device == "cuda" else 16,
            "precision": next(iter(machine.rates)),
            "lr": width.lr,
            "warmup_steps": 0,
            "decay": "linear",
            "betas": [0.9, 0.99],
        },
        "ema": {},
        "checkpoint": {},
        "monitor": {"sample_images": SAMPLE_IMAGES, "sample_steps": SAMPLE_STEPS},
    }


def _multipliers(size: int) -> tuple[int, ...]:
    return next((chosen for side, chosen in MULTIPLIERS.items() if size <= side), MULTIPLIERS[max(MULTIPLIERS)])


def _halvings(size: int) -> int:
    """How often a side can be halved."""
    return (size & -size).bit_length() - 1


def _run_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-") or "images"


def _round(number: float) -> int:
    """To two digits, downwards."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit


def _interval(steps: int, budget: float, cost: float) -> int:
    """Steps between things of this cost: as many of them as the budget allows, one at least."""
    return -(-steps // max(1, min(INTERVALS, int(budget / cost))))
