"""The operations and the memory of a rank of a run before it exists: nothing is computed or allocated."""

import posixpath
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fdtrain.capacity.layout import run_layout
from fdtrain.config import Config
from fdtrain.data.dataset import FILE, VERSION, DatasetDescription, read_description
from fdtrain.data.shard_table import Shard, ShardTable
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec, inner_matrices, parameter_count

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def flops(spec: ModelSpec, checkpointing: bool = False) -> int:
    """Operations of a training step for one image, in matrix products and convolutions: a multiply-add counts as two.
    Checkpointing repeats the forward pass. Counted by ``torch.utils.flop_counter`` on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        out = Model(spec)(*_inputs(spec, 1))
        forward = counter.get_total_flops()
        out.sum().backward()
    return counter.get_total_flops() + (forward if checkpointing else 0)


def activations(spec: ModelSpec, images: int, precision: str = "bf16", checkpointing: bool = False) -> int:
    """Bytes that eager autograd saves of a pass, with the casts that CUDA's autocast makes, of the weights too.

    ``torch.compile`` saves less; the allocator's gaps and the workspaces of convolutions come on top.
    """
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        # The reference keeps any other storage from getting the same address.
        saved[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    dtype = AUTOCAST.get(precision, torch.bfloat16)
    with FakeTensorMode():
        model = Model(spec, checkpointing)
        inputs = _inputs(spec, images)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
            torch.autocast("cpu", dtype, enabled=precision in AUTOCAST),
            _FullPrecisionNorms(),
        ):
            model(*inputs)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


class _FullPrecisionNorms(TorchFunctionMode):
    """Normalise in float32, which autocast does on CUDA and not on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (nnf.group_norm, nnf.layer_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _inputs(spec: ModelSpec, images: int) -> tuple[Tensor, Tensor, Tensor | None]:
    label = torch.zeros(images, dtype=torch.int64) if spec.classes else None
    return torch.empty(images, *spec.shape), torch.empty(images, dtype=torch.float64), label


def known_dataset(
    name: str, size: int, channels: int, levels: int, classes: int, images: int, split: str = "train"
) -> DatasetDescription:
    """As ``fdtrain pack`` packs it, with its images in one shard."""
    shard = Shard(file="0.tar", images=images, bytes=0, sha256="0" * 64)
    return DatasetDescription(
        version=VERSION,
        name=name,
        source="",
        size=size,
        channels=channels,
        levels=levels,
        classes=[str(i) for i in range(classes)],
        encoding="png",
        splits={split: ShardTable.of([shard])},
    )


# By the folders of configs/: name, pixels of a side, channels, levels, classes, images.
DATASETS = {
    "digits": ("digits", 8, 1, 17, 10, 1497),
    "fashion_mnist": ("fashion_mnist", 28, 1, 256, 10, 60_000),
    "cifar10": ("cifar10", 32, 3, 256, 10, 50_000),
    "imagenet32": ("imagenet32-new", 32, 3, 256, 1000, 1_281_167),
    "imagenet32-old": ("imagenet32-old", 32, 3, 256, 0, 1_281_149),
    "imagenet64": ("imagenet64-new", 64, 3, 256, 1000, 1_281_167),
    "celeba64": ("celeba64", 64, 3, 256, 0, 162_770),
}


def images_of(config: Config, config_file: Path) -> DatasetDescription:
    """The data set that a configuration trains on: as its folder describes it, or a run's beside its record, or the
    published one that has the name of its folder.

    Raises:
        UserError: there is none, or its description is damaged, or lacks the split to train on.
    """
    path, split = config.data.paths[0], config.data.train_split
    folders = [config_file.parent] if len(config.data.paths) > 1 else [Path(path), config_file.parent]
    if folder := next((folder for folder in folders if (folder / FILE).is_file()), None):
        found = read_description(folder)
        if split not in found.splits:
            raise UserError(f"data.train_split: {folder} has no split '{split}' (it has: {', '.join(found.splits)}).")
        return found
    return published(config)


def published(config: Config) -> DatasetDescription:
    """The published data set that has the name of a configuration's folder. Raises UserError: there is none."""
    path = config.data.paths[0]
    name = posixpath.basename(path.rstrip("/"))
    if name not in DATASETS:
        raise UserError(
            f"data.path: {path} is no packed data set, and {name!r} none that was published. Pack it, or name a "
            f"published one by --set data.path=NAME: {', '.join(DATASETS)}."
        )
    return known_dataset(*DATASETS[name], config.data.train_split)


def state_memory(parameters: int, zero_stage: int, gpus: int, averages: int = 1, muons: int = 0) -> tuple[int, ...]:
    """Bytes of a rank that do not depend on the batch: float32 weights, gradients, Adam's two moments and the averages
    (Rajbhandari et al. 2020). Of the parameters that Muon steps, ``muons`` of them, there is one moment.

    The averages are always shared among the ranks, the optimiser's state from stage 1, gradients from 2, weights
    at 3. From stage 1 on DeepSpeed has a second copy of the weights that a rank updates.
    """
    whole, share, one_moment = 4 * parameters, -(-4 * parameters // gpus), 4 * muons
    weights = share if zero_stage == 3 else whole
    gradients = share if zero_stage >= 2 else whole
    optimiser = 3 * share - one_moment // gpus if zero_stage else 2 * whole - one_moment
    return weights, gradients, optimiser, averages * share


def memory(config: Config, spec: ModelSpec, devices: int) -> list[tuple[int, ...]]:
    """Bytes held on each device by ZeRO's stages from 0 to 3: those of :func:`state_memory`, and the activations of a
    pass. UserError if so many cannot share the batch."""
    training, averages = config.training, 1 + len(config.ema.lengths)
    images = run_layout(training, devices).micro_batch
    saved = activations(spec, images, training.precision, config.network.checkpointing)
    with torch.device("meta"):
        model = Model(spec)
    muons = sum(p.numel() for p in inner_matrices(model).values()) if training.optimizer == "muon" else 0
    count = parameter_count(model)
    return [(*state_memory(count, stage, devices, averages, muons), saved) for stage in range(4)]


def parameters(spec: ModelSpec) -> int:
    """Counted without allocating them."""
    with torch.device("meta"):
        return parameter_count(Model(spec))
