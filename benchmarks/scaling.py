"""Two processes against one: weak scaling, and bytes between them against the least.

    python benchmarks/scaling.py                      # digits' network, 128 images each, ZeRO 0, 1 and 2
    python benchmarks/scaling.py --volume             # the bytes alone
    python benchmarks/scaling.py --config configs/cifar10.yaml --images 4 --set training.precision=fp32 \\
        --rounds 3 --steps 1

One process on a core of its own and two on two cores take turns, so that a machine whose speed drifts is fair to
both. The step is the engine's: forward, backward, reduction, clipping, AdamW. Bytes are counted where DeepSpeed calls
torch.distributed, as a ring moves them.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

STAGES = (0, 1, 2)


class Volume:
    """Bytes that a ring moves through this rank for the collectives called, in each direction."""

    def __init__(self):
        self.bytes = 0.0
        self._wrap("all_reduce", 2, "tensor")
        self._wrap("reduce", 1, "tensor")
        self._wrap("broadcast", 1, "tensor")
        self._wrap("all_gather_into_tensor", 1, "output_tensor")
        self._wrap("all_gather", 1, "tensor_list")
        self._wrap("reduce_scatter_tensor", 1, "input")

    def _wrap(self, name: str, times: int, whole: str) -> None:
        """Count calls of a function whose argument ``whole``, also its first, is what all ranks hold together."""
        function: Callable = getattr(dist, name)

        def counted(*arguments, **named):
            held = named[whole] if whole in named else arguments[1 if whole == "input" else 0]
            tensors = held if isinstance(held, list) else [held]
            ranks = dist.get_world_size()
            self.bytes += times * (ranks - 1) / ranks * sum(x.numel() * x.element_size() for x in tensors)
            return function(*arguments, **named)

        setattr(dist, name, counted)


def worker(arguments: argparse.Namespace) -> None:
    """Answers the parent's lines: ``volume STAGE``, ``time STAGE STEPS``. Rank 0 replies."""
    volume = Volume()
    from fdtrain import distributed
    from fdtrain.capacity.estimate import published
    from fdtrain.capacity.layout import run_layout
    from fdtrain.config import load_config
    from fdtrain.networks.model import Model, parameter_count
    from fdtrain.training.engine import Engine
    from fdtrain.training.plan import model_spec

    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[distributed.rank()]})
    batch = arguments.images * distributed.world_size()
    batches = [
        f"training.global_batch={batch}",
        f"training.lanes={distributed.world_size()}",
        "training.micro_batch=null",
    ]
    config = load_config(arguments.config, [*arguments.set, *batches])
    spec = model_spec(config, published(config))
    device = distributed.connect()
    x = torch.rand(arguments.images, *spec.shape, device=device)
    t = torch.rand(arguments.images, dtype=torch.float64, device=device)
    label = torch.zeros(arguments.images, dtype=torch.int64, device=device) if spec.classes else None
    engines = {}

    def take(stage: int, steps: int) -> float:
        if stage not in engines:
            torch.manual_seed(0)
            training = config.training.model_copy(update={"zero_stage": stage})
            layout = run_layout(training, distributed.world_size(), distributed.rank())
            engines[stage] = Engine(Model(spec).to(device), training, layout)
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            engines[stage].backward((engines[stage].field(label)(x, t) - x).square().mean())
            engines[stage].step(1e-4)
        return (time.perf_counter() - begin) / steps

    def moved(words: list[str]) -> list[float]:
        take(int(words[0]), 1)
        volume.bytes = 0.0
        take(int(words[0]), 1)
        return [volume.bytes, 4 * parameter_count(Model(spec))]

    answers = {"volume": moved, "time": lambda words: take(int(words[0]), int(words[1]))}
    for line in sys.stdin:
        name, *words = line.split()
        answer = answers[name](words)
        if distributed.rank() == 0:
            print("answer", json.dumps(answer), flush=True)


class Group:
    """Processes of one launch that do what they are told."""

    def __init__(self, processes: int, command: list[str]):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
        self.processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]

    def ask(self, line: str):
        """What rank 0 answers."""
        for process in self.processes:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        for said in self.processes[0].stdout:
            if said.startswith("answer "):
                return json.loads(said.removeprefix("answer "))
        sys.exit("a process of the measurement ended early")

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--images", type=int, default=128, help="of each process in a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each turn")
    parser.add_argument("--volume", action="store_true", help="count bytes, time nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    command = [sys.executable, __file__, "--worker", *sys.argv[1:]]
    two = Group(2, command)
    one = None if arguments.volume else Group(1, command)
    try:
        print(*_volumes(two), sep="\n", flush=True)
        if one:
            print(*_times(one, two, arguments), sep="\n")
    finally:
        for group in filter(None, (one, two)):
            group.close()


def _volumes(two: Group) -> list[str]:
    """A ring's all-reduce between N processes moves the fewest bytes: 2 (N - 1) / N of the gradient, each way."""
    lines = []
    for stage in STAGES:
        moved, gradient = two.ask(f"volume {stage}")
        lines.append(f"ZeRO {stage}: {moved / 1e6:.3f} MB per process and step, {moved / gradient:.4f} of the least")
    return lines


def _times(one: Group, two: Group, arguments: argparse.Namespace) -> list[str]:
    times = {stage: ([], []) for stage in STAGES}
    for round_ in range(arguments.rounds + 1):
        for stage, pair in times.items():
            for group, kept in zip((one, two), pair):
                seconds = group.ask(f"time {stage} {arguments.steps}")
                if round_:  # the first warms up
                    kept.append(seconds)
    lines = []
    for stage, (alone, together) in times.items():
        ratios = [a / b for a, b in zip(alone, together)]
        lines.append(
            f"ZeRO {stage}: 1 process {1e3 * statistics.median(alone):.1f} ms, "
            f"2 processes {1e3 * statistics.median(together):.1f} ms; "
            f"weak scaling {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    return lines


if __name__ == "__main__":
    main()
