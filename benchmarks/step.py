"""The trainer's own cost: images/s of the whole trainer over those of a bare loop.

    python benchmarks/step.py --config configs/digits.yaml --data data/digits
    python benchmarks/step.py --config configs/cifar10.yaml --set training.global_batch=16 --set training.lanes=16 \\
        --rounds 5 --steps 2

The bare loop is forward, backward and fused AdamW on the same network, batch and precision, fed with one fixed
batch: no DeepSpeed, no data, no average, no log, no clipping. The two take turns in one process, several rounds
each, so that a machine whose speed drifts is fair to both; the median of the rounds' ratios is printed.
"""

import argparse
import contextlib
import statistics
import tempfile
import time

import numpy as np
import torch

from fdtrain.assembly import own_batches
from fdtrain.data.pack import pack
from fdtrain.data.sources.digits import Digits
from fdtrain.data.sources.source import Source
from fdtrain.diffusion import objective
from fdtrain.diffusion.time_sampling import time_density
from fdtrain.networks.model import Model, parameter_count
from fdtrain.preparation import prepare
from fdtrain.training import engine as ds
from fdtrain.training.draws import LaneDraws
from fdtrain.training.ema import make_ema
from fdtrain.training.monitor import Monitor
from fdtrain.training.trainer import Trainer

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def random_images(folder, images=2000):
    """Pack images whose contents do not matter."""
    random = np.random.default_rng(0)
    part = Digits(random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, images))
    source = Source("random", "random numbers", 32, 3, [str(i) for i in range(10)], {"train": [part]})
    pack(source, folder)
    return folder


def bare_loop(plan, device):
    """A generator that makes one step at each ``next``."""
    spec, training = plan.spec, plan.config.training
    model = Model(spec).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, betas=training.betas, fused=True)
    shape = (training.global_batch, *spec.shape)
    x0, eps = torch.rand(shape, device=device) * 2 - 1, torch.randn(shape, device=device)
    t = torch.linspace(0, 1, training.global_batch, dtype=torch.float64, device=device)
    pdf = torch.ones_like(t)
    dtype = AUTOCAST.get(training.precision)
    cast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
    label = torch.zeros(training.global_batch, dtype=torch.int64, device=device) if spec.classes else None

    def field(x, t):
        with cast:
            return model(x, t, label)

    while True:
        (objective.nelbo(field, x0, eps, t, pdf).mean() / spec.dims).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def whole_trainer(plan, device, monitor):
    """The same, by the trainer: data, draws, DeepSpeed, clipping, average, log."""
    config, spec = plan.config, plan.spec
    training = config.training
    model = Model(spec).to(device)
    ema = make_ema(model, config.ema.decay, config.ema.warmup_power)
    engine = ds.Engine(model, training)
    density = time_density(config.diffusion.time_density, spec.scale)
    draws = LaneDraws(
        config.seed, training.global_batch, training.lane_images, config.diffusion.time_sampling, density, device
    )
    trainer = Trainer(config, spec, plan.identity, engine, ema, draws, monitor, [])
    yield from trainer.steps(own_batches(plan, 0), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", help="a packed data set; default: random images of 32x32x3")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of each loop in each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or random_images(f"{folder}/data")
        settings = [f"output={folder}", f"data.path={data}", "data.test_split=null", *arguments.set]
        settings += [f"training.steps={arguments.rounds * arguments.steps + arguments.steps}"]
        settings += ["monitor.evaluate_every=null", "monitor.sample_every=null", "checkpoint.every=1000000"]
        plan = prepare(arguments.config, settings, resume=False)
        device = ds.connect()
        monitor = Monitor(plan.config.folder, plan.config.training.steps, 0, first=True)
        loops = {"bare": bare_loop(plan, device), "trainer": whole_trainer(plan, device, monitor)}
        times = {name: [] for name in loops}
        for round_ in range(arguments.rounds + 1):
            for name, loop in loops.items():
                begin = time.perf_counter()
                for _ in range(arguments.steps):
                    next(loop)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_:  # the first warms up
                    times[name].append((time.perf_counter() - begin) / arguments.steps)
        images = plan.config.training.global_batch
        print(
            f"{plan.config.name}: {parameter_count(Model(plan.spec)):,} parameters, batch {images}, "
            f"{plan.config.training.precision}, {device.type}, {torch.get_num_threads()} threads"
        )
        for name, values in times.items():
            print(f"{name:8} {images / statistics.median(values):9.1f} images/s (median of {len(values)} rounds)")
        ratios = [b / t for b, t in zip(times["bare"], times["trainer"])]
        print(f"trainer / bare: {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")
        monitor.close()


if __name__ == "__main__":
    main()
