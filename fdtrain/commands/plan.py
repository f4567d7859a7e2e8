"""What a configuration will take: ``fdtrain plan configs/cifar10.yaml --for cuda:8``.

Parameters, work, memory of each device (of several: at every ZeRO stage), time. Needs no GPU, and no data: the images
are those of the data set at data.path, of the run whose config.yaml it is, or of the published data set of that name.
Operations are counted, not guessed; the utilisation is yours to measure, and communication comes on top. Memory is a
lower bound: tensors alone, without workspaces and the allocator's gaps.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from fdtrain.capacity.cost import Flops, activations, flops
from fdtrain.capacity.estimate import (
    DATASETS,
    KnownDataset,
    Work,
    muons,
    packed,
    parameters,
    pass_images,
    published,
    state_memory,
    summary,
    work,
)
from fdtrain.capacity.layout import zero_stage
from fdtrain.capacity.spec import model_spec
from fdtrain.capacity.target import Target, target
from fdtrain.config import Config, load_config
from fdtrain.console import phase
from fdtrain.errors import UserError
from fdtrain.evaluation.wording import duration
from fdtrain.networks.model import ModelSpec

GIB, MIB = 2**30, 2**20
GPU, CORE = 989.0, 0.1
"""TFLOP/s: the peak of an H100 or H200 in dense bf16; and about that of a core of a CPU, in float32 by AVX2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML configuration, or a run's config.yaml")
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
    parser.add_argument(
        "--dataset", choices=DATASETS, help="default: the one at data.path, or the published one of its name"
    )
    for name in ("size", "channels", "levels", "classes"):
        parser.add_argument(f"--{name}", type=int, help="of the images, in place of the data set's")


def run(arguments: argparse.Namespace) -> None:
    on: Target = arguments.target
    if arguments.tflops is None:
        arguments.tflops = GPU if on.device == "cuda" else CORE * len(os.sched_getaffinity(0))
    _check(arguments)
    config = load_config(arguments.config, arguments.set)
    images = _images(arguments, config)
    spec = model_spec(config, images.description())
    with phase("counting operations and memory"):
        memory = _memory(config, spec, on)
        counted = flops(spec)
        total = work(config, counted, on.devices, arguments.tflops, arguments.utilisation)
        lines = [str(arguments.config), *_work(config, images, spec, counted, total, on), *memory]
        if on.device == "cuda":
            lines += ["", summary(config, spec, total)]
    print("\n".join(lines))


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.utilisation <= 1:
        raise UserError(f"--utilisation {arguments.utilisation}: give a share above 0 and up to 1.")
    bounds = {"size": (1, 4096), "channels": (1, 4), "levels": (2, 256), "classes": (0, 2**20)}
    for name, (least, most) in bounds.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value}: give {least} to {most}.")
    if not 0 < arguments.tflops < float("inf"):
        raise UserError(f"--tflops {arguments.tflops}: give the peak of a device, such as 989.")


def _images(arguments: argparse.Namespace, config: Config) -> KnownDataset:
    given = {name: getattr(arguments, name) for name in ("size", "channels", "levels", "classes")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) == 4:
        return KnownDataset("given", train_images=0, **given)
    known = DATASETS[arguments.dataset] if arguments.dataset else packed(config, arguments.config) or published(config)
    return replace(known, **given)


def _work(config: Config, images: KnownDataset, spec: ModelSpec, counted: Flops, total: Work, on: Target) -> list[str]:
    epochs = f", {total.images / images.train_images:,.0f} epochs" if images.train_images else ""
    again = " + forward again, by checkpointing" if config.network.checkpointing else ""
    whole = f"{total.hours_text} GPU hours" if on.device == "cuda" else duration(total.device_hours)
    shared = f": {duration(total.device_hours / on.devices)} on {on.devices} GPUs" if on.devices > 1 else ""
    return [
        f"network      {spec.network}, {parameters(spec):,} parameters, images {spec.shape} of {spec.levels} levels",
        f"work         {total.flops_per_image / 1e9:.1f} GFLOP per image: "
        f"forward {counted.forward / 1e9:.1f} + backward {counted.backward / 1e9:.1f}{again}",
        f"run          {config.training.steps:,} steps of global batch {config.training.global_batch}: "
        f"{f'{total.images / 1e6:.1f} M' if total.images >= 1e6 else f'{total.images:,}'} images{epochs}",
        f"time         {whole} at {total.utilisation:.0%} of {total.tflops:g} TFLOP/s{shared}",
    ]


def _memory(config: Config, spec: ModelSpec, on: Target) -> list[str]:
    """Raises UserError if so many devices cannot share the batch."""
    training = config.training
    images = pass_images(config, on.devices)
    memory = activations(spec, training.precision, config.network.checkpointing)
    one = "GPU" if on.device == "cuda" else "CPU"
    lines = [
        f"activations  {memory.per_image / MIB:.1f} MiB per image and {memory.fixed / MIB:.0f} MiB "
        f"({training.precision}, eager), {images} images in a pass: {memory.bytes(images) / GIB:.2f} GiB",
        f"memory of {f'each of {on.devices} {one}s' if on.devices > 1 else f'the {one}'}, GiB",
        "  ZeRO  weights  gradients  optimiser  average  activations   total",
    ]
    configured = zero_stage(training, on.devices)
    # One device has nothing to share.
    for stage in range(4) if on.devices > 1 else (configured,):
        state = state_memory(parameters(spec), stage, on.devices, 1 + len(config.ema.lengths), muons(training, spec))
        batch = memory.bytes(images)
        parts = (state.weights, state.gradients, state.optimiser, state.average, batch, state.total + batch)
        row = "".join(f"{part / GIB:{width}.2f}" for part, width in zip(parts, (9, 11, 11, 9, 13, 8)))
        lines.append(f"  {stage}   {row}{'  as configured' if stage == configured else ''}")
    return lines
