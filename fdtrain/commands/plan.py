"""What a configuration will take: ``fdtrain plan configs/cifar10.yaml --gpus 8``.

Parameters, work, memory of each GPU at every ZeRO stage, time, and the step on 8 to 4,096 GPUs. Needs no GPU, and no
data: the images are those of the data set at data.path, of the run whose config.yaml it is, or of the published data
set of that name. Operations are counted, not guessed; the utilisation is yours to measure. Memory is a lower bound:
tensors alone, without workspaces and the allocator's gaps. The step on many GPUs is docs/scaling.md's model of it.
"""

import argparse
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
    step_on,
    summary,
    work,
)
from fdtrain.capacity.interconnect import Interconnect
from fdtrain.capacity.layout import run_layout, zero_stage
from fdtrain.capacity.spec import model_spec
from fdtrain.config import Config, load_config
from fdtrain.errors import UserError
from fdtrain.networks.model import ModelSpec

GIB, MIB = 2**30, 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML configuration, or a run's config.yaml")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of the peak; default %(default)s")
    parser.add_argument("--tflops", type=float, default=989, help="peak of a GPU; default: H100 or H200, dense bf16")
    parser.add_argument(
        "--between", type=float, default=45, help="GB/s of each GPU's link to other nodes; default: 400 Gb/s at 90%%"
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
    _check(arguments)
    config = load_config(arguments.config, arguments.set)
    images = _images(arguments, config)
    spec = model_spec(config, images.description())
    counted = flops(spec)
    network = Interconnect(between=arguments.between * 1e9)
    total = work(config, counted, parameters(spec), arguments.gpus, arguments.tflops, arguments.utilisation, network)
    lines = [str(arguments.config), *_work(config, images, spec, counted, total), *_memory(config, spec, total.gpus)]
    lines += _scaling(config, spec, total, network)
    print("\n".join([*lines, "", summary(config, spec, total)]))


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.utilisation <= 1:
        raise UserError(f"--utilisation {arguments.utilisation}: give a share above 0 and up to 1.")
    bounds = {"gpus": (1, 2**20), "size": (1, 4096), "channels": (1, 4), "levels": (2, 256), "classes": (0, 2**20)}
    for name, (least, most) in bounds.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value}: give {least} to {most}.")
    if not 0 < arguments.tflops < float("inf"):
        raise UserError(f"--tflops {arguments.tflops}: give the peak of a GPU, such as 989.")
    if not 0 < arguments.between < float("inf"):
        raise UserError(f"--between {arguments.between}: give the speed of a link in GB/s, such as 45.")


def _images(arguments: argparse.Namespace, config: Config) -> KnownDataset:
    given = {name: getattr(arguments, name) for name in ("size", "channels", "levels", "classes")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) == 4:
        return KnownDataset("given", train_images=0, **given)
    known = DATASETS[arguments.dataset] if arguments.dataset else packed(config, arguments.config) or published(config)
    return replace(known, **given)


def _work(config: Config, images: KnownDataset, spec: ModelSpec, counted: Flops, total: Work) -> list[str]:
    epochs = f", {total.images / images.train_images:,.0f} epochs" if images.train_images else ""
    again = " + forward again, by checkpointing" if config.network.checkpointing else ""
    return [
        f"network      {spec.network}, {parameters(spec):,} parameters, images {spec.shape} of {spec.levels} levels",
        f"work         {total.flops_per_image / 1e9:.1f} GFLOP per image: "
        f"forward {counted.forward / 1e9:.1f} + backward {counted.backward / 1e9:.1f}{again}",
        f"run          {config.training.steps:,} steps of global batch {config.training.global_batch}: "
        f"{total.images / 1e6:.1f} M images{epochs}",
        f"time         {total.hours_text} GPU hours at {total.utilisation:.0%} of {total.tflops:g} TFLOP/s"
        f" and {total.step.efficiency:.0%} of linear: {total.days:.2f} days on {total.gpus} GPUs, "
        f"{1e3 * total.step.seconds:.2f} ms a step",
    ]


def _memory(config: Config, spec: ModelSpec, gpus: int) -> list[str]:
    training = config.training
    memory = activations(spec, training.precision, config.network.checkpointing)
    images = pass_images(config, gpus)
    lines = [
        f"activations  {memory.per_image / MIB:.1f} MiB per image and {memory.fixed / MIB:.0f} MiB "
        f"({training.precision}, eager), {images} images in a pass: {memory.bytes(images) / GIB:.2f} GiB",
        f"memory of each of {gpus} GPUs, GiB",
        "  ZeRO  weights  gradients  optimiser  average  activations   total",
    ]
    for stage in range(4):
        state = state_memory(parameters(spec), stage, gpus, 1 + len(config.ema.lengths), muons(training, spec))
        batch = memory.bytes(images)
        parts = (state.weights, state.gradients, state.optimiser, state.average, batch, state.total + batch)
        row = "".join(f"{part / GIB:{width}.2f}" for part, width in zip(parts, (9, 11, 11, 9, 13, 8)))
        lines.append(f"  {stage}   {row}{'  as configured' if stage == zero_stage(training, gpus) else ''}")
    return lines


def _scaling(config: Config, spec: ModelSpec, total: Work, network: Interconnect) -> list[str]:
    """The step as GPUs and global batch grow together, that of the run among them."""
    training = config.training
    images, passes = training.global_batch // total.gpus, run_layout(training, total.gpus).passes
    lines = [
        f"weak scaling with {images} images per GPU, ZeRO {training.zero_stage}, "
        f"{network.inside / 1e9:g} GB/s in a node and {network.between / 1e9:g} per GPU between nodes",
        "  GPUs  step, ms  waiting for others, ms  of linear    images/s",
    ]
    for gpus in sorted({1, 8, 64, 512, 4096, total.gpus}):
        scaled = step_on(config, parameters(spec), total.step.alone, gpus, passes, network)
        lines.append(
            f"  {gpus:4}{1e3 * scaled.seconds:10.2f}{1e3 * scaled.exposed:24.2f}{scaled.efficiency:11.0%}"
            f"{images * gpus / scaled.seconds:12,.0f}{'  this run' if gpus == total.gpus else ''}"
        )
    return lines
