"""What a run will take, before there is a data set or a machine: memory of a rank, work, time."""

import posixpath
from dataclasses import dataclass

import torch

from fdtrain.capacity.cost import Flops, activations
from fdtrain.capacity.interconnect import Interconnect, StepTime, step
from fdtrain.config import Config
from fdtrain.data.dataset import VERSION, DatasetDescription
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec, parameter_count


@dataclass(frozen=True)
class KnownDataset:
    """A data set as tools/pack.py packs it; ``classes`` is their number."""

    name: str
    size: int
    channels: int
    levels: int
    classes: int
    train_images: int

    def description(self) -> DatasetDescription:
        """As if it were packed, without shards."""
        classes = [str(i) for i in range(self.classes)]
        return DatasetDescription(
            version=VERSION,
            name=self.name,
            source="",
            size=self.size,
            channels=self.channels,
            levels=self.levels,
            classes=classes,
            encoding="png",
            splits={},
        )


# By the folders of configs/.
DATASETS = {
    "digits": KnownDataset("digits", 8, 1, 17, 10, 1497),
    "cifar10": KnownDataset("cifar10", 32, 3, 256, 10, 50_000),
    "imagenet32": KnownDataset("imagenet32-new", 32, 3, 256, 1000, 1_281_167),
    "imagenet32-old": KnownDataset("imagenet32-old", 32, 3, 256, 0, 1_281_149),
    "imagenet64": KnownDataset("imagenet64-new", 64, 3, 256, 1000, 1_281_167),
    "celeba64": KnownDataset("celeba64", 64, 3, 256, 0, 162_770),
}


def published(config: Config) -> KnownDataset:
    """The data set that a configuration trains on, told by the folder's name.

    Raises:
        UserError: not one of :data:`DATASETS`.
    """
    name = posixpath.basename(config.data.paths[0].rstrip("/"))
    if name not in DATASETS:
        raise UserError(f"data.path: {name!r} is not a known data set ({', '.join(DATASETS)}). Name one by --dataset.")
    return DATASETS[name]


@dataclass(frozen=True)
class StateMemory:
    """Bytes that a rank holds whatever the batch."""

    weights: int
    gradients: int
    optimiser: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.average


def state_memory(parameters: int, zero_stage: int, gpus: int) -> StateMemory:
    """Of float32 weights, gradients, Adam's two moments and the average, 4 bytes each (Rajbhandari et al. 2020).

    The average is shared among the ranks always, the optimiser's state from stage 1, gradients from 2, weights
    at 3. From stage 1 on DeepSpeed holds a second copy of the weights that a rank steps.
    """
    whole, share = 4 * parameters, -(-4 * parameters // gpus)
    return StateMemory(
        weights=share if zero_stage == 3 else whole,
        gradients=share if zero_stage >= 2 else whole,
        optimiser=3 * share if zero_stage else 2 * whole,
        average=share,
    )


@dataclass(frozen=True)
class Work:
    """A whole run on ``gpus`` devices of ``tflops`` peak, of which computation uses the share ``utilisation``.

    ``step`` is one step's time, waiting for the other devices included: the run's time follows from it.
    """

    steps: int
    images: int
    flops_per_image: int
    gpus: int
    tflops: float
    utilisation: float
    step: StepTime

    @property
    def gpu_hours(self) -> float:
        return self.steps * self.step.seconds * self.gpus / 3600

    @property
    def days(self) -> float:
        return self.gpu_hours / self.gpus / 24


def work(
    config: Config,
    counted: Flops,
    weights: int,
    gpus: int,
    tflops: float,
    utilisation: float,
    network: Interconnect | None = None,
) -> Work:
    """Of the training steps; evaluation and samples come on top. ``weights`` is the number of parameters.

    Raises:
        UserError: so many ranks cannot share the batch.
    """
    training = config.training
    per_image = counted.training(config.network.checkpointing)
    alone = training.global_batch / gpus * per_image / (tflops * 1e12 * utilisation)
    found = step_on(config, weights, alone, gpus, training.accumulation(gpus), network or Interconnect())
    images = training.steps * training.global_batch
    return Work(training.steps, images, per_image, gpus, tflops, utilisation, found)


def step_on(config: Config, weights: int, alone: float, gpus: int, passes: int, network: Interconnect) -> StepTime:
    """The step of ``passes`` passes, whose computation takes ``alone`` seconds, on so many devices."""
    training = config.training
    return step(alone, 4 * weights, gpus, training.stage(gpus), network, passes, training.overlap)


def pass_images(config: Config, gpus: int) -> int:
    """Images of one pass of one rank.

    Raises:
        UserError: so many ranks cannot share the batch.
    """
    return config.training.global_batch // gpus // config.training.accumulation(gpus)


def summary(config: Config, spec: ModelSpec, total: Work) -> str:
    """The two lines that the comments of configs/ carry."""
    kept = activations(spec, config.training.precision, config.network.checkpointing)
    state = state_memory(parameters(spec), config.training.stage(total.gpus), total.gpus)
    held = state.total + kept.bytes(pass_images(config, total.gpus))
    return (
        f"# Global batch {config.training.global_batch}, {total.images / 1e6:.0f} M images seen. "
        f"Expected (tools/plan.py): {total.gpu_hours:,.0f} GPU hours\n"
        f"# at {total.utilisation:.0%} of {total.tflops:g} TFLOP/s; "
        f"{held / 2**30:.1f} GiB held on each of {total.gpus} GPUs."
    )


def parameters(spec: ModelSpec) -> int:
    """Counted without allocating them."""
    with torch.device("meta"):
        return parameter_count(Model(spec))
