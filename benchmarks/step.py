"""A training step's speed: the whole trainer against a bare loop, and against plain PyTorch.

    python benchmarks/step.py --config configs/digits.yaml --data data/digits
    python benchmarks/step.py --config configs/cifar10.yaml --set training.global_batch=16 --set training.lanes=16 \\
        --peers --rounds 5 --steps 2

The bare loop is forward, backward and fused AdamW on the same network, batch and precision, compiled if the
trainer's is, fed with one fixed batch: no DeepSpeed, no data, no average, no log, no clipping. ``--peers`` adds
the same loop as PyTorch comes, in float32 and under bf16 autocast: not compiled, torch's own layers, layout and
settings, each in a process of its own. All take turns, several rounds each, so that a machine whose speed drifts is
fair to all; the medians of the rounds' ratios are printed. None warms its learning rate up: the first steps' tiny
gradients would have moments too small for the normal range, with which a CPU is slow.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from contextlib import suppress

import numpy as np
import torch
from bare_loop import bare_loop

from fdtrain import distributed
from fdtrain.data.pack import pack
from fdtrain.data.sources.digits import in_memory
from fdtrain.data.sources.picture import exactly
from fdtrain.data.sources.source import Source
from fdtrain.networks import layers
from fdtrain.networks.model import Model, parameter_count
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import Heartbeat
from fdtrain.resilience.verdict import Limits
from fdtrain.training.build import build
from fdtrain.training.compilation import worthwhile
from fdtrain.training.hardware import set_tf32
from fdtrain.training.plan import prepare
from fdtrain.training.trainer import FLAGS, Launch


def random_images(folder, images=2000):
    """Pack images whose contents do not matter."""
    random = np.random.default_rng(0)
    part = in_memory(random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, images))
    source = Source("random", "random numbers", exactly(32, 3), [str(i) for i in range(10)], {"train": [part]})
    pack(source, folder)
    return folder


def plain_loop(*settings):
    """The bare loop as PyTorch comes, in a process of its own; a generator as well."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, torch.get_num_threads(), *settings), daemon=True).start()
    while True:
        here.send(None)
        here.recv()
        yield


def _serve(connection, threads, spec, training, device, precision):
    torch.set_num_threads(threads)
    set_tf32(training.tf32)
    layers.GroupNorm.forward, layers.Dropout.forward = torch.nn.GroupNorm.forward, torch.nn.Dropout.forward
    loop = bare_loop(spec, training.global_batch, device, precision, layout=torch.contiguous_format)
    with suppress(EOFError):
        while True:
            connection.recv()
            next(loop)
            if device.type == "cuda":
                torch.cuda.synchronize()
            connection.send(None)


def lone_trainer(plan, device):
    """The trainer as a run of one process builds it, its log begun; ``.steps()`` trains."""
    training = plan.config.training
    heartbeat = Heartbeat(Limits(training.heartbeat_timeout_s, training.collective_timeout_s, joining=1.0))
    trainer = build(plan, Launch(device, Consensus(FLAGS), heartbeat))
    trainer.monitor.begin(0)
    return trainer


def take_turns(loops, rounds, steps, device):
    """Seconds of a step of each loop in each round; the round before them warms up."""
    times = {name: [] for name in loops}
    for round_ in range(rounds + 1):
        for name, loop in loops.items():
            begin = time.perf_counter()
            for _ in range(steps):
                next(loop)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                times[name].append((time.perf_counter() - begin) / steps)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", help="a packed data set; default: random images of 32x32x3")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--peers", action="store_true", help="plain PyTorch too, in float32 and under bf16 autocast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of each loop in each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or random_images(f"{folder}/data")
        settings = [f"output={folder}", f"data.path={data}", "data.test_split=null", *arguments.set]
        settings += [f"training.steps={arguments.rounds * arguments.steps + arguments.steps}"]
        settings += ["monitor.evaluate_every=null", "monitor.sample_every=null", "checkpoint.every=1000000"]
        settings += ["training.warmup_steps=0"]
        plan = prepare(arguments.config, settings, resume=False)
        training = plan.config.training
        device = distributed.connect()
        trainer = lone_trainer(plan, device)
        accounting = trainer.utilisation
        compiled = worthwhile(training, plan.layout, accounting.flops_per_image, device)
        loops = {
            "bare": bare_loop(plan.spec, training.global_batch, device, training.precision, compiled),
            "trainer": trainer.steps(),
        }
        if arguments.peers:
            for precision in ("fp32", "bf16"):
                loops[f"plain {precision}"] = plain_loop(plan.spec, training, device, precision)
        times = take_turns(loops, arguments.rounds, arguments.steps, device)
        images = training.global_batch
        print(
            f"{plan.config.name}: {parameter_count(Model(plan.spec)):,} parameters, batch {images}, "
            f"{training.precision}{', compiled' if compiled else ''}, "
            f"{device.type}, {torch.get_num_threads()} threads\n"
            f"{accounting.flops_per_image / 1e9:.1f} GFLOP per image; "
            f"matrix products at {accounting.rate / 1e9:.0f} GFLOP/s"
        )
        for name, values in times.items():
            speed = accounting.speed(images / statistics.median(values))
            print(
                f"{name:10} {speed['images_per_second']:9.2f} images/s, {speed['tflops_per_device'] * 1e3:.0f} GFLOP/s "
                f"(median of {len(values)} rounds)"
            )
        for name in (name for name in loops if name != "trainer"):
            ratios = [b / t for b, t in zip(times[name], times["trainer"])]
            print(f"trainer / {name}: {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")
        trainer.monitor.close()


if __name__ == "__main__":
    main()
