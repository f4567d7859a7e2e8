"""What a run of many ranks costs each of them, and rank 0: ``python benchmarks/scale.py`` (docs/lab/performance.md).

No rank trains. Files: the first, a middle and the last rank of a launch do, each in a process of its own, what they do
at the start, for a step's batch and with a checkpoint of a network of a billion parameters, whose parts are sparse
files. Sockets: all ranks are threads of one process, which meet in a store, give signs of life and agree on flags over
connections of their own. Seconds are of the processor, so that other work on the machine does not count. In one
process a thousand ranks keep a core busy: gloo's threads look up a hundred times a second.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from many_shards import resident
from torch._C._distributed_c10d import Store
from torch.distributed import PrefixStore, ProcessGroupGloo

from fdtrain import distributed
from fdtrain.capacity.estimate import published
from fdtrain.capacity.layout import run_layout
from fdtrain.checkpoint import soundness, store
from fdtrain.checkpoint.fragments import AVERAGE, FIRST_MOMENT, SECOND_MOMENT, WEIGHT, Place, part_name
from fdtrain.config import load_config
from fdtrain.data.dataset import VERSION, DatasetDescription, Shard, write_description
from fdtrain.data.location import locate
from fdtrain.data.mixture import lane_order
from fdtrain.files import sha256
from fdtrain.networks.model import Model
from fdtrain.resilience import consensus, heartbeat
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.plan import model_spec

SHARDS, IMAGES_PER_RANK = 10_000, 8
KINDS = (WEIGHT, FIRST_MOMENT, SECOND_MOMENT, AVERAGE)
SECONDS = 20
"""For which signs of life are counted."""


def in_process(rank: int, world: int, work: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, megabytes at most beyond what there was, and the result, of what a rank of so many does alone."""
    here, there = multiprocessing.Pipe()

    def child() -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        distributed.of_all = lambda value: [value]
        before, begin = resident("VmRSS"), time.process_time()
        result = work()
        there.send((time.process_time() - begin, resident("VmHWM") - before, result))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    there.close()
    answer = here.recv()
    process.join()
    return answer


def of_some(world: int, work: Callable[[], object]) -> str:
    """The most that the first, a middle and the last rank take."""
    found = [in_process(rank, world, work) for rank in (0, world // 2, world - 1)]
    seconds, megabytes, results = zip(*found)
    told = f", {max(results)} files" if isinstance(results[0], int) else ""
    return f"{max(seconds):.2f} s, {max(megabytes):.0f} MB{told}"


def pack(folder: Path) -> None:
    """Shards of nothing, in their length."""

    def shards() -> Iterable[Shard]:
        for i in range(SHARDS):
            shard = Shard(
                file=f"train-{i:05d}.tar", images=1000, bytes=2**22, sha256=hashlib.sha256(b"%d" % i).hexdigest()
            )
            with (folder / shard.file).open("wb") as file:
                file.truncate(shard.bytes)
            yield shard

    given = {"version": VERSION, "name": "many", "source": "", "size": 32, "channels": 3, "levels": 256, "classes": []}
    write_description(folder, DatasetDescription(**given, encoding="npy", splits={}), {"train": shards()})


class Files:
    """The parts of a start and of a checkpoint that need no network of processes."""

    def __init__(self, folder: Path, world: int):
        self.folder, self.world = folder, world
        batch = [f"training.global_batch={IMAGES_PER_RANK * world}", f"training.lanes={world}"]
        self.config = load_config("configs/cifar10.yaml", ["network.channels=512", *batch, "training.micro_batch=null"])
        self.spec = model_spec(self.config, published(self.config))
        with torch.device("meta"):
            self.sizes = {name: p.numel() for name, p in Model(self.spec).named_parameters()}

    def start(self) -> int:
        """Open the data, and look for this rank's share of the shards; how many those are."""
        locate(self.folder / "data").check(["train"], distributed.rank(), self.world)
        return len(range(SHARDS)[distributed.rank() :: self.world])

    def batch(self) -> None:
        """The order of the data, and samples and noise of a step in the middle of the run."""
        layout = run_layout(self.config.training, self.world, distributed.rank())
        order = lane_order([[1000] * SHARDS], [1.0], layout.lanes, 0, self.config.data.shuffle_window)
        noise, labels = BatchNoise.of(self.config, self.spec), torch.zeros(IMAGES_PER_RANK, dtype=torch.int64)
        for lane in layout.own_lanes:
            order.samples(lane, 10**5, 10**5 + IMAGES_PER_RANK)
        images = torch.zeros(IMAGES_PER_RANK, *self.spec.shape, dtype=torch.uint8)
        noise.batch(10**5, layout.own_lanes, images, labels)

    def places(self, part: int, stage: int) -> list[Place]:
        """The fragments of a part, as ZeRO 1 and 3 cut the weights."""
        whole, begin, found = sum(self.sizes.values()), 0, []
        for name, size in self.sizes.items():
            piece = -(-size // self.world)
            mine = range(whole * part // self.world, whole * (part + 1) // self.world)
            first = piece * part if stage == 3 else max(0, mine.start - begin)
            last = min(size, piece * (part + 1)) if stage == 3 else min(size, mine.stop - begin)
            begin += size
            found += [(f"{kind}/{name}", first, last - first) for kind in KINDS if first < last]
        return found

    def write(self, stage: int) -> Path:
        """A checkpoint but for its manifest. Checksums are of the parts that are read."""
        temporary = self.folder / "checkpoints" / store.temporary_name(stage)
        temporary.mkdir(parents=True)
        counters = store.Counters(0.0, {}, (0.0, 0.0))
        state = store.State(stage, 0, self.world, stage, [0.0], 0, 0, counters, {}, None)
        store.describe(temporary, self.spec, "", state)
        for part in range(self.world):
            path, places, header, end = temporary / part_name(part), self.places(part, stage), {}, 0
            for name, start, size in places:
                offsets = [end, end := end + 4 * size]
                header[f"{name}/{start}"] = {"dtype": "F32", "shape": [size], "data_offsets": offsets}
            text = json.dumps(header).encode()
            with path.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + end)
            read = part in (0, self.world // 2, self.world - 1)
            digest = {"bytes": path.stat().st_size, "sha256": sha256(path) if read else "", "finite": True}
            # As store.record_digest leaves it, but not synchronised.
            path.with_suffix(".json").write_text(json.dumps({**digest, "fragments": places}))
        return temporary

    def resume(self, checkpoint: Path, stage: int) -> int:
        """Choose the checkpoint and read this rank's part of it; how many parts that takes."""
        if problem := soundness.fault(checkpoint, together=True):
            raise RuntimeError(problem)
        return self.read(checkpoint, stage)

    def read(self, checkpoint: Path, stage: int) -> int:
        parts = store.open_parts(checkpoint)
        for name, start, size in self.places(distributed.rank(), stage):
            parts.read(*name.split("/"), start, size)
        return len(parts.opened)

    def rows(self) -> dict[str, str]:
        return {
            "a rank opens the data and looks for its shards": of_some(self.world, self.start),
            "a rank finds the samples and the noise of a step": of_some(self.world, self.batch),
            **self.of_checkpoint(1),
            **self.of_checkpoint(3),
        }

    def of_checkpoint(self, stage: int) -> dict[str, str]:
        temporary = self.write(stage)
        seconds, megabytes, path = in_process(0, self.world, lambda: store.commit(temporary, self.world))
        size = (path / store.MANIFEST).stat().st_size / 1e6
        found = {
            "rank 0 commits a checkpoint": f"{seconds:.2f} s, {megabytes:.0f} MB, manifest of {size:.1f} MB",
            "a rank chooses it and reads its part": of_some(self.world, lambda: self.resume(path, stage)),
        }
        manifest = json.loads((path / store.MANIFEST).read_text())
        del manifest["fragments"]
        (path / store.MANIFEST).write_text(json.dumps(manifest))
        found["a rank reads its part without the index"] = of_some(self.world, lambda: self.read(path, stage))
        return {f"ZeRO {stage}: {name}": row for name, row in found.items()}


class RankThread(threading.Thread):
    """A thread of the rank that starts it."""

    place = threading.local()

    def __init__(self, *arguments, rank: int | None = None, **options):
        super().__init__(*arguments, **options)
        self.rank = getattr(self.place, "rank", 0) if rank is None else rank

    def run(self) -> None:
        self.place.rank = self.rank
        super().run()


class Ranks:
    """All ranks of a launch, each a thread of this process that does ``work`` with a connection of its own to a store,
    up to each of the gates at which :meth:`meet` lets them go on."""

    def __init__(self, world: int, work: Callable[[Store], Iterable[None]]):
        os.environ.update(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0", TORCH_GLOO_LAZY_INIT="1")
        threading.Thread, distributed.rank = RankThread, lambda: RankThread.place.rank
        RankThread.place.rank = 0
        self.world, self.gate = world, threading.Barrier(world + 1)
        self.store = distributed.open_store(600)
        os.environ["MASTER_PORT"] = str(self.store.port)
        self.files, self.memory = self._files(), resident("VmRSS")

        def rank() -> None:
            for _ in work(distributed.open_store(600, serve=False)):
                self.gate.wait()

        for number in range(world):
            RankThread(target=rank, rank=number, daemon=True).start()

    def meet(self) -> tuple[float, float]:
        """When all have, by the processor's clock and the wall's."""
        self.gate.wait()
        return time.process_time(), time.perf_counter()

    def _files(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def grown(self, connections: int) -> str:
        """By a rank, of which the store has so many connections, whose other ends are in this process."""
        files, memory = self._files() - self.files, resident("VmRSS") - self.memory
        return f"{files / self.world - connections:.1f} open files and {memory / self.world:.1f} MB a rank"


def signs(world: int) -> dict[str, str]:
    """Of life: every rank's heartbeat."""

    def work(own: Store) -> Iterable[None]:
        with heartbeat.Heartbeat(heartbeat.Limits(600, 600, 600)) as beat:
            beat.meet(own)
            yield
            yield

    begin = time.process_time()
    ranks = Ranks(world, work)
    met, _ = ranks.meet()
    time.sleep(SECONDS)
    spent = time.process_time() - met
    keys, own = [f"{heartbeat.PLACE}/{number}" for number in range(1, world)], time.thread_time()
    for sign in ranks.store.multi_get(keys):
        heartbeat.Sign(*json.loads(sign))
    read = time.thread_time() - own
    return {
        "the ranks meet": f"{1e3 * (met - begin) / world:.1f} ms a rank",
        "signs of life": f"{spent / SECONDS / world:.3%} of a core a rank, {ranks.grown(2)}",
        "rank 0 reads all signs": f"{1e3 * read:.1f} ms every 2 s",
    }


def flags(world: int) -> dict[str, str]:
    """Every rank's consensus: four exchanges."""
    of_rank = threading.local()

    def new_group(backend: str, timeout: timedelta) -> ProcessGroupGloo:
        return ProcessGroupGloo(PrefixStore("flags", of_rank.store), distributed.rank(), world, timeout)

    def all_reduce(flags, op, group, async_op):
        options = dist.AllreduceOptions()
        options.reduceOp = op
        return group.allreduce([flags], options)

    consensus.dist = SimpleNamespace(new_group=new_group, all_reduce=all_reduce, ReduceOp=dist.ReduceOp)

    def work(own: Store) -> Iterable[None]:
        of_rank.store = own
        agreement = consensus.Consensus(("stop", "bad"), 600)
        yield
        for step in range(4):
            if step == 1 and distributed.rank() == world // 2:
                agreement.raise_flag("stop")
            assert agreement.exchange() == ({"stop"} if step == 2 else set())
        agreement._work.wait()
        yield
        yield

    begin = time.process_time()
    ranks = Ranks(world, work)
    met = ranks.meet()
    done = ranks.meet()
    each = [1e3 * (b - a) / 4 for a, b in zip(met, done)]
    return {
        "a group for flags": f"{1e3 * (met[0] - begin) / world:.1f} ms a rank, {ranks.grown(1)}",
        "an exchange of flags": f"{each[0] / world:.2f} ms a rank, {each[1]:.0f} ms from the first to the last",
    }


def answer(measure: Callable[[int], dict[str, str]], world: int, send: Callable[[dict[str, str]], None]) -> None:
    send(measure(world))
    os._exit(0)


def alone(measure: Callable[[int], dict[str, str]], world: int) -> dict[str, str]:
    """In a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(measure, world, there.send))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def print_table(measure: Callable[[int], dict[str, str]], worlds: list[int]) -> None:
    columns = []
    for world in worlds:
        columns.append(measure(world))
        print(world, columns[-1], flush=True)
    print(f"\n| ranks | {' | '.join(f'{world:,}' for world in worlds)} |\n|---|{'---|' * len(worlds)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |", flush=True)


def files(world: int) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        pack(Path(folder) / "data")
        return Files(Path(folder), world).rows()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[64, 256, 1024], help="for which files are measured")
    parser.add_argument("--connected", type=int, nargs="*", default=[64, 256, 1024], help="the same for sockets")
    arguments = parser.parse_args()
    if arguments.ranks:
        print_table(files, arguments.ranks)
    if arguments.connected:
        print_table(lambda world: alone(signs, world) | alone(flags, world), arguments.connected)


if __name__ == "__main__":
    main()
