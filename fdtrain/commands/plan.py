"""What a configuration will take: ``fdtrain plan configs/cifar10.yaml --for cuda:8``.

Parameters, work, memory of each device (of several: at every ZeRO stage), time. Needs no GPU, and no data: the images
are those of the data set at data.path, of the run whose config.yaml it is, or of the published data set of that name.
Operations are counted, not guessed; the utilisation is yours to measure, and communication comes on top. Memory is a
lower bound: tensors alone, without workspaces and the allocator's gaps.
"""

import argparse
import os
from pathlib import Path

from fdtrain.capacity.estimate import flops, images_of, memory, parameters
from fdtrain.capacity.layout import run_layout, zero_stage
from fdtrain.capacity.spec import model_spec
from fdtrain.capacity.target import Target, target
from fdtrain.config import Config, load_config
from fdtrain.console import phase
from fdtrain.data.dataset import DatasetDescription
from fdtrain.errors import UserError
from fdtrain.evaluation.wording import duration
from fdtrain.main import add_allow_code

GIB = 2**30
GPU, CORE = 989.0, 0.1
"""TFLOP/s: the peak of an H100 or H200 in dense bf16; and about that of a core of a CPU, in float32 by AVX2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML configuration, or a run's config.yaml")
    add_allow_code(parser)
    parser.add_argument(
        "--for",
        dest="target",
        type=target,
        default=Target("cuda", 8),
        metavar="cpu|cuda[:N]",
        help="devices (default: %(default)s)",
    )
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of the peak; default %(default)s")
    parser.add_argument(
        "--tflops",
        type=float,
        help=f"peak of a device; default: {GPU:g} for a GPU (H100 or H200, dense bf16), {CORE:g} for each core here",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override any keys; the configuration's file comes before it",
    )


def run(arguments: argparse.Namespace) -> None:
    on: Target = arguments.target
    tflops = arguments.tflops
    if tflops is None:
        tflops = GPU if on.device == "cuda" else CORE * len(os.sched_getaffinity(0))
    if not 0 < arguments.utilisation <= 1:
        raise UserError(f"--utilisation {arguments.utilisation}: give a share above 0 and up to 1.")
    if not 0 < tflops < float("inf"):
        raise UserError(f"--tflops {tflops}: give the peak of a device, such as 989.")
    config = load_config(arguments.config, arguments.set)
    data = images_of(config, arguments.config)
    with phase("counting operations and memory"):
        lines = forecast(config, data, on, tflops, arguments.utilisation)
    print(arguments.config, *lines, sep="\n")


def forecast(config: Config, data: DatasetDescription, on: Target, tflops: float, utilisation: float) -> list[str]:
    """What training takes on devices of ``tflops`` peak each, of which computation uses the share ``utilisation``,
    without communication, evaluation and samples. The last two lines for GPUs are those in the comments of configs/.

    Raises:
        UserError: so many devices cannot share the batch, or the data set does not fit the configuration.
    """
    training, spec = config.training, model_spec(config, data)
    work, seen = flops(spec, config.network.checkpointing), training.steps * training.global_batch
    epochs = seen / max(1, data.images(config.data.train_split))
    hours = seen * work / (tflops * 1e12 * utilisation) / 3600
    bytes_of, configured = memory(config, spec, on.devices), zero_stage(training, on.devices)
    again = ", the forward pass twice, by checkpointing" if config.network.checkpointing else ""
    gpu_hours, usage = f"{hours:,.{0 if hours >= 10 else 1}f} GPU hours", f"{utilisation:.0%} of {tflops:g} TFLOP/s"
    whole, each = (gpu_hours, "GPU") if on.device == "cuda" else (duration(hours), "CPU")
    shared = f": {duration(hours / on.devices)} on {on.devices} GPUs" if on.devices > 1 else ""
    where = f"each of {on.devices} {each}s" if on.devices > 1 else f"the {each}"
    images = run_layout(training, on.devices).micro_batch
    lines = [
        f"network      {spec.network}, {parameters(spec):,} parameters, images {spec.shape} of {spec.levels} levels",
        f"work         {work / 1e9:.1f} GFLOP per image{again}",
        f"run          {training.steps:,} steps of global batch {training.global_batch}: {seen:,} images, "
        f"{epochs:,.0f} epochs",
        f"time         {whole} at {usage}{shared}",
        f"memory of {where}, GiB; activations of {images} images in a pass, {training.precision}, eager",
        "  ZeRO  weights  gradients  optimiser  average  activations   total",
    ]
    # One device has nothing to share.
    for stage in range(4) if on.devices > 1 else (configured,):
        parts = (*bytes_of[stage], sum(bytes_of[stage]))
        row = "".join(f"{part / GIB:{width}.2f}" for part, width in zip(parts, (9, 11, 11, 9, 13, 8)))
        lines.append(f"  {stage}   {row}{'  as configured' if stage == configured else ''}")
    if on.device == "cuda":
        batch = f"# Global batch {training.global_batch}, {seen / 1e6:.0f} M images seen."
        total = f"{sum(bytes_of[configured]) / GIB:.1f} GiB held on each of {on.devices} GPUs."
        lines += ["", f"{batch} Expected (fdtrain plan): {gpu_hours}", f"# at {usage}; {total}"]
    return lines
