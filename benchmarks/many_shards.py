"""A data set of a million shards: ``python benchmarks/many_shards.py`` (docs/data.md says what it found).

Describes ``--shards`` shards of 1,000 samples that do not exist, opens the description in a process of its own, and
finds the samples of some steps, from the first to one of the hundredth epoch. Prints seconds of the processor, and by
how much the process grew beyond what it was after its imports.
"""

import argparse
import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fdtrain.data.dataset import VERSION, DatasetDescription, Shard, write_description
from fdtrain.data.location import locate
from fdtrain.data.mixture import lane_order
from fdtrain.data.shards import ShardReader

SAMPLES, GLOBAL_BATCH, LANES = 1000, 256, 64


def shards(count: int) -> Iterator[Shard]:
    for i in range(count):
        digest = hashlib.sha256(i.to_bytes(8, "little")).hexdigest()
        yield Shard(file=f"train-{i:06d}.tar", images=SAMPLES, bytes=4_198_400, sha256=digest)


def describe(folder: Path, count: int) -> None:
    description = DatasetDescription(
        version=VERSION, name="many", source="", size=32, channels=3, levels=256, classes=[], encoding="npy", splits={}
    )
    write_description(folder, description, {"train": shards(count)})


def resident(kind: str) -> float:
    """Megabytes: VmRSS now, RssAnon of them not shared with other processes, VmHWM at most."""
    status = Path("/proc/self/status").read_text().partition(f"{kind}:")[2].split()
    return int(status[0]) / 1e3


def use(folder: Path, count: int) -> None:
    before, own, begin = resident("VmRSS"), resident("RssAnon"), time.process_time()
    # As a store has it: whether a local shard is there is asked for each of some thousands.
    data = locate(folder.as_uri())
    placed = data.split("train")
    order = lane_order([placed.images], [1.0], LANES, 0, 1024)
    ShardReader(placed, data.description)
    print(f"opened {len(placed):,} shards in {time.process_time() - begin:.2f} s", flush=True)
    epoch = count * SAMPLES // GLOBAL_BATCH
    for step in (0, 1, epoch // 2, epoch - 1, epoch, 99 * epoch + epoch // 3):
        begin = time.process_time()
        n = GLOBAL_BATCH // LANES
        rows = np.concatenate([order.samples(lane, step * n, (step + 1) * n) for lane in range(LANES)])
        names = [placed[shard].shard.file for shard in np.unique(rows[:, 0]).tolist()]
        took = time.process_time() - begin
        print(f"step {step:>12,}: {len(rows)} samples of {len(names)} shards found in {took:.2f} s", flush=True)
    shared = f"{resident('RssAnon') - own:.0f} of them not shared with other processes"
    print(
        f"memory: {resident('VmRSS') - before:.0f} MB more, {shared}; at most {resident('VmHWM') - before:.0f} MB more"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1_000_000)
    count = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        describe(Path(folder), count)
        mebibytes = [path.stat().st_size / 2**20 for path in Path(folder).rglob("*") if path.is_file()]
        print(
            f"described {count:,} shards in {time.process_time() - begin:.1f} s, in {len(mebibytes)} files of "
            f"{sum(mebibytes):.1f} MiB"
        )
        process = multiprocessing.get_context("spawn").Process(target=use, args=(Path(folder), count))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
