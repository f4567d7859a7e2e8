"""Figures of sampling and Frechet distances (docs/lab/performance.md), on a trained run of the digits.

    python benchmarks/evaluate.py moments data/digits export/digits-features
    python benchmarks/evaluate.py processes runs/digits data/digits export/digits-features

moments: features with their statistics over the feature network alone, in turn. processes: images/s of drawing and
measuring on two processes over one, a thread each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from fdtrain import distributed
from fdtrain.data.split import Split
from fdtrain.evaluation import image_sets, process
from fdtrain.evaluation.feature_networks import open_features
from fdtrain.evaluation.load import load_model
from fdtrain.evaluation.measure import measure
from fdtrain.evaluation.samples import Sampler

CPU = torch.device("cpu")


def moments(arguments: argparse.Namespace) -> None:
    network = open_features(arguments.features, CPU)
    split = image_sets.of_split(Split(arguments.data, "train"))
    held = split.batch(range(split.count)).repeat(8, 1, 1, 1)
    images = image_sets.in_memory("held", held)
    chunks = [range(i, min(i + 256, len(held))) for i in range(0, len(held), 256)]

    def alone() -> None:
        for chunk in chunks:
            network.run(images.batch(chunk))

    rates: dict[str, list[float]] = {"network alone": [], "with statistics": []}
    for _ in range(arguments.rounds + 1):
        for name, work in (
            ("network alone", alone),
            ("with statistics", lambda: measure(network, images, 256, CPU)),
        ):
            begin = time.process_time()
            work()
            rates[name].append(len(held) / (time.process_time() - begin))
    # The first round warms up. Processor time: what other processes take does not count.
    kept = {name: values[1:] for name, values in rates.items()}
    for name, values in kept.items():
        print(f"{name}: {statistics.median(values):.0f} images/s")
    ratios = [b / a for a, b in zip(*kept.values())]
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def processes(arguments: argparse.Namespace) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for count in rates:
            command = ["torchrun", "--standalone", "--nproc_per_node", str(count), __file__, "worker"]
            command += [arguments.run, arguments.data, arguments.features, "--images", str(arguments.images)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            command[0] = str(Path(sys.executable).parent / command[0])
            found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rates[count].append(float(found.stdout.split()[-1]))
    for count, values in rates.items():
        print(f"{count} processes: {statistics.median(values):.0f} images/s")
    ratios = [b / a for a, b in zip(rates[1], rates[2])]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def worker(arguments: argparse.Namespace) -> None:
    with process.process_group(None) as place:
        model = load_model(arguments.run)
        network = open_features(arguments.features, place)
        drawn = image_sets.of_model(model.to(place), Sampler(steps=20), 0, arguments.images)
        measure(network, replace(drawn, count=64 * distributed.world_size()), 64, place)
        distributed.of_all(None)  # Wait for all.
        begin = time.perf_counter()
        measure(network, drawn, 64, place)
        seconds = time.perf_counter() - begin
    if distributed.rank() == 0:
        print(arguments.images / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, work in (("moments", moments), ("processes", processes), ("worker", worker)):
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        if name != "moments":
            command.add_argument("run", help="a trained run, checkpoint or export")
        command.add_argument("data", help="the packed digits")
        command.add_argument("features", help="folder of features")
        command.add_argument("--images", type=int, default=1024)
        command.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.work(arguments)


if __name__ == "__main__":
    main()
