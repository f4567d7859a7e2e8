"""What a configuration will take: ``fdtrain plan configs/cifar10.yaml --for cuda:8``.

Parameters, work, memory of each device (of several: at every ZeRO stage), time. Needs no GPU, and no data: the images
are those of the data set at data.path, of the run whose config.yaml it is, or of the published data set of that name.
Operations are counted, not guessed; the utilisation is yours to measure, and communication comes on top. Memory is a
lower bound: tensors alone, without workspaces and the allocator's gaps.
"""

import argparse
import os
from pathlib import Path

from fdtrain.capacity.estimate import Forecast, images_of
from fdtrain.capacity.layout import run_layout
from fdtrain.capacity.spec import model_spec
from fdtrain.capacity.target import Target, target
from fdtrain.config import load_config
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
    spec = model_spec(config, data)
    forecast = Forecast(config, spec, on.devices, tflops, arguments.utilisation)
    with phase("counting operations and memory"):
        lines = [str(arguments.config), *_work(forecast, data, on), *_memory(forecast, on)]
        lines += ["", forecast.summary()] if on.device == "cuda" else []
    print("\n".join(lines))


def _work(forecast: Forecast, data: DatasetDescription, on: Target) -> list[str]:
    config, spec, hours = forecast.config, forecast.spec, forecast.device_hours
    seen, epochs = forecast.images, forecast.images / max(1, data.images(config.data.train_split))
    again = ", the forward pass twice, by checkpointing" if config.network.checkpointing else ""
    whole = f"{forecast.hours_text} GPU hours" if on.device == "cuda" else duration(hours)
    shared = f": {duration(hours / on.devices)} on {on.devices} GPUs" if on.devices > 1 else ""
    return [
        f"network      {spec.network}, {forecast.parameters:,} parameters, images {spec.shape} of {spec.levels} levels",
        f"work         {forecast.flops / 1e9:.1f} GFLOP per image{again}",
        f"run          {config.training.steps:,} steps of global batch {config.training.global_batch}: "
        f"{seen:,} images, {epochs:,.0f} epochs",
        f"time         {whole} at {forecast.utilisation:.0%} of {forecast.tflops:g} TFLOP/s{shared}",
    ]


def _memory(forecast: Forecast, on: Target) -> list[str]:
    """Raises UserError if so many devices cannot share the batch."""
    training = forecast.config.training
    one = "GPU" if on.device == "cuda" else "CPU"
    lines = [
        f"memory of {f'each of {on.devices} {one}s' if on.devices > 1 else f'the {one}'}, GiB; activations of "
        f"{run_layout(training, on.devices).micro_batch} images in a pass, {training.precision}, eager",
        "  ZeRO  weights  gradients  optimiser  average  activations   total",
    ]
    configured = forecast.zero_stage
    # One device has nothing to share.
    for stage in range(4) if on.devices > 1 else (configured,):
        parts = forecast.memory(stage)
        row = "".join(f"{part / GIB:{width}.2f}" for part, width in zip((*parts, sum(parts)), (9, 11, 11, 9, 13, 8)))
        lines.append(f"  {stage}   {row}{'  as configured' if stage == configured else ''}")
    return lines
