"""Estimates the memory of a rank, the work and the time of a run before it exists."""

import posixpath
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from fdtrain.capacity.cost import Activations, Flops, activations, flops
from fdtrain.capacity.layout import run_layout, zero_stage
from fdtrain.config import Config
from fdtrain.data.dataset import FILE, VERSION, DatasetDescription, read_description
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec, inner_matrices, parameter_count


class KnownDataset(NamedTuple):
    """A data set as ``fdtrain pack`` packs it; ``classes`` is the number of classes."""

    name: str
    size: int
    channels: int
    levels: int
    classes: int
    train_images: int

    def description(self) -> DatasetDescription:
        """The description of the packed data set, without shards."""
        image = {key: value for key, value in self._asdict().items() if key != "train_images"}
        image["classes"] = [str(i) for i in range(self.classes)]
        return DatasetDescription(version=VERSION, source="", encoding="png", splits={}, **image)


# By the folders of configs/.
DATASETS = {
    "digits": KnownDataset("digits", 8, 1, 17, 10, 1497),
    "fashion_mnist": KnownDataset("fashion_mnist", 28, 1, 256, 10, 60_000),
    "cifar10": KnownDataset("cifar10", 32, 3, 256, 10, 50_000),
    "imagenet32": KnownDataset("imagenet32-new", 32, 3, 256, 1000, 1_281_167),
    "imagenet32-old": KnownDataset("imagenet32-old", 32, 3, 256, 0, 1_281_149),
    "imagenet64": KnownDataset("imagenet64-new", 64, 3, 256, 1000, 1_281_167),
    "celeba64": KnownDataset("celeba64", 64, 3, 256, 0, 162_770),
}


def packed(config: Config, config_file: Path) -> KnownDataset | None:
    """The packed data set that a configuration trains on, as its folder describes it, or a run's beside its record.

    None where neither folder has a description.

    Raises:
        UserError: the description is damaged, or lacks the split to train on.
    """
    own = Path(config.data.paths[0]) if len(config.data.paths) == 1 else None
    folder = next((folder for folder in (own, config_file.parent) if folder and (folder / FILE).is_file()), None)
    if folder is None:
        return None
    found, split = read_description(folder), config.data.train_split
    if split not in found.splits:
        raise UserError(f"data.train_split: {folder} has no split '{split}' (it has: {', '.join(found.splits)}).")
    return KnownDataset(found.name, found.size, found.channels, found.levels, len(found.classes), found.images(split))


def published(config: Config) -> KnownDataset:
    """The data set that a configuration trains on, by the name of its folder.

    Raises:
        UserError: not one of :data:`DATASETS`.
    """
    name = posixpath.basename(config.data.paths[0].rstrip("/"))
    if name not in DATASETS:
        raise UserError(
            f"data.path: {config.data.paths[0]} is no packed data set, and {name!r} none that was published "
            f"({', '.join(DATASETS)}). Pack it, name a published one by --dataset, or give --size, --channels, "
            "--levels and --classes."
        )
    return DATASETS[name]


class StateMemory(NamedTuple):
    """Bytes in the memory of a rank that do not depend on the batch."""

    weights: int
    gradients: int
    optimiser: int
    average: int


def state_memory(parameters: int, zero_stage: int, gpus: int, averages: int = 1, muons: int = 0) -> StateMemory:
    """Memory of float32 weights, gradients, Adam's two moments and the averages (Rajbhandari et al. 2020).

    Of the parameters that Muon steps, ``muons`` of them, there is one moment.
    The averages are always shared among the ranks, the optimiser's state from stage 1, gradients from 2, weights
    at 3. From stage 1 on DeepSpeed has a second copy of the weights that a rank updates.
    """
    whole, share = 4 * parameters, -(-4 * parameters // gpus)
    one_moment = 4 * muons
    return StateMemory(
        weights=share if zero_stage == 3 else whole,
        gradients=share if zero_stage >= 2 else whole,
        optimiser=3 * share - one_moment // gpus if zero_stage else 2 * whole - one_moment,
        average=averages * share,
    )


@dataclass(frozen=True)
class Forecast:
    """What a run will take on ``devices`` of ``tflops`` peak each, of which computation uses the share ``utilisation``:
    its training steps alone, without communication, evaluation and samples."""

    config: Config
    spec: ModelSpec
    devices: int
    tflops: float
    utilisation: float

    @cached_property
    def flops(self) -> Flops:
        return flops(self.spec)

    @cached_property
    def activations(self) -> Activations:
        return activations(self.spec, self.config.training.precision, self.config.network.checkpointing)

    @cached_property
    def parameters(self) -> int:
        return parameters(self.spec)

    @property
    def images(self) -> int:
        """Of all steps."""
        return self.config.training.steps * self.config.training.global_batch

    @property
    def flops_per_image(self) -> int:
        return self.flops.training(self.config.network.checkpointing)

    @property
    def device_hours(self) -> float:
        return self.images * self.flops_per_image / (self.tflops * 1e12 * self.utilisation) / 3600

    @property
    def hours_text(self) -> str:
        """The hours, with a decimal where there are few."""
        return f"{self.device_hours:,.0f}" if self.device_hours >= 10 else f"{self.device_hours:.1f}"

    @property
    def zero_stage(self) -> int:
        """As configured."""
        return zero_stage(self.config.training, self.devices)

    @property
    def pass_images(self) -> int:
        """Of one rank. UserError if this number of ranks cannot share the batch."""
        return run_layout(self.config.training, self.devices).micro_batch

    def memory(self, stage: int) -> tuple[int, ...]:
        """Bytes held on each device at a ZeRO stage: those of StateMemory, and the activations of a pass."""
        muons = 0
        if self.config.training.optimizer == "muon":
            with torch.device("meta"):
                muons = sum(p.numel() for p in inner_matrices(Model(self.spec)).values())
        averages = 1 + len(self.config.ema.lengths)
        state = state_memory(self.parameters, stage, self.devices, averages, muons)
        return (*state, self.activations.bytes(self.pass_images))

    def summary(self) -> str:
        """The two lines that the comments of configs/ carry."""
        return (
            f"# Global batch {self.config.training.global_batch}, {self.images / 1e6:.0f} M images seen. "
            f"Expected (fdtrain plan): {self.hours_text} GPU hours\n"
            f"# at {self.utilisation:.0%} of {self.tflops:g} TFLOP/s; "
            f"{sum(self.memory(self.zero_stage)) / 2**30:.1f} GiB held on each of {self.devices} GPUs."
        )


def parameters(spec: ModelSpec) -> int:
    """Counted without allocating them."""
    with torch.device("meta"):
        return parameter_count(Model(spec))
