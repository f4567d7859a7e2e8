"""The data path's figures in one run: ``python benchmarks/data.py`` (docs/data.md says what they mean).

* images/s of one worker process on adopted 32x32 npy, png and jpg, and on Fashion-MNIST where it is installed, and
  microseconds of processor per image, worker and main process together, beside webdataset, mosaicml-streaming (if it
  is installed) and a map-style folder of files, each as people write it; and webdataset, the folder and one
  memory-mapped npy at their best: a lean decode without numpy's and Pillow's detection, into one array a batch. All
  give shuffled batches of 128 through a torch DataLoader; the others are spared the transposition to (C, H, W) and
  every check. Rounds take turns; medians are compared.
* memory of a worker over two epochs
* images/s that one process packs, beside tarfile with np.save and webdataset's writer, given the same 32x32 arrays and
  asked for the same checksums; the share of what decoding and writing alone can do (packing_share.py); and its memory
  while it packs
* seconds to the first batch when starting at step k, at 1.28 M images in 1,281 shards
* share of a step that training waits for data, with the network of configs/digits.yaml on the CPU
"""

import argparse
import gc
import hashlib
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import packing_share
import torch
import webdataset
from PIL import Image, JpegImagePlugin, PngImagePlugin
from torch.utils.data import DataLoader, Dataset

from fdtrain.data.adopt import adopt
from fdtrain.data.dataset import VERSION, DatasetDescription, Shard, read_description, write_description
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.mixture import lane_order, open_data
from fdtrain.data.pack import pack, pack_digits
from fdtrain.data.shards import ShardReader
from fdtrain.data.sources.idx import idx
from fdtrain.data.sources.picture import exactly
from fdtrain.data.sources.source import Part, Sample, Source

BATCH, LANES, WINDOW, SHARD = 128, 64, 1024, 1000
PIXELS = {1: "l8", 3: "rgb8"}
ROOT = Path(__file__).resolve().parent.parent


def picture(i: int, size: int = 32) -> np.ndarray:
    """Smooth with a little noise, so that png compresses it about as well as a photograph."""
    random = np.random.default_rng(i)
    coarse = random.integers(0, 244, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    return np.minimum(smooth, 243) + random.integers(0, 12, smooth.shape, dtype=np.uint8)


def encode(image: np.ndarray, encoding: str) -> bytes:
    file = io.BytesIO()
    if encoding == "npy":
        np.save(file, image)
    else:
        grey = image[:, :, 0] if image.shape[2] == 1 else image
        Image.fromarray(grey).save(file, "jpeg" if encoding == "jpg" else encoding)
    return file.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, str, bytes]]) -> Shard:
    count = 0
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as tar:
        for key, encoding, data in samples:
            tar.write({"__key__": key, encoding: data, "cls": b"3"})
            count += 1
    content = path.read_bytes()
    return Shard(file=path.name, images=count, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def describe(folder: Path, shards: list[Shard], size: int, channels: int, encoding: str) -> None:
    description = DatasetDescription(
        version=VERSION,
        name="benchmark",
        source="made by benchmarks/data.py",
        size=size,
        channels=channels,
        levels=256,
        classes=[str(i) for i in range(10)],
        encoding=encoding,
        splits={},
    )
    write_description(folder, description, {"train": shards})


def make(folder: Path, encoding: str, pictures: np.ndarray) -> None:
    """The same images as shards, as loose files and, if it is installed, in mosaicml-streaming's format."""
    for name in ("shards", "files"):
        (folder / name).mkdir(parents=True)
    images, data = len(pictures), [encode(image, encoding) for image in pictures]
    shards = []
    for start in range(0, images, SHARD):
        part = ((f"{i:08d}", encoding, data[i]) for i in range(start, min(start + SHARD, images)))
        shards.append(write_shard(folder / "shards" / f"train-{start // SHARD:06d}.tar", part))
    adopt({"train": [str(folder / "shards" / shard.file) for shard in shards]}, folder / "shards", "benchmark")
    for i, content in enumerate(data):
        (folder / "files" / f"{i:08d}.{encoding}").write_bytes(content)
    if encoding == "npy":
        np.save(folder / "images.npy", pictures)
    if streaming := import_streaming():
        columns = {"image": "bytes", "label": "int"}
        with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, progress_bar=False) as writer:
            for content in data:
                writer.write({"image": content, "label": 3})


def import_streaming():
    try:
        import streaming
    except ImportError as error:
        print(f"without mosaicml-streaming: {error}")
        return None
    return streaming


def lane_dataset(folder: Path, lanes: int = LANES) -> LaneDataset:
    data = open_data([folder])
    shards = data.split("train")
    order = lane_order([shards.images], [1.0], lanes, 0, WINDOW)
    reader = ShardReader(shards, data.description, keep_open=lanes * order.shards_at_once)
    return LaneDataset(reader, order, range(lanes), BATCH // lanes)


def fdtrain_batches(folder: Path, encoding: str, images: int) -> Iterable:
    return Batches(lane_dataset(folder / "shards"), 0, images // BATCH, workers=1)


def webdataset_batches(folder: Path, encoding: str, images: int) -> Iterable:
    shards = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    data = (
        webdataset.WebDataset(shards, shardshuffle=100)
        .shuffle(WINDOW)
        .decode(PIXELS[shape_of(folder)[2]])
        .to_tuple(encoding, "cls")
    )
    return webdataset.WebLoader(data.batched(BATCH), batch_size=None, num_workers=1)


def decode(data: bytes, encoding: str, mode: str = "RGB") -> np.ndarray:
    return np.load(io.BytesIO(data)) if encoding == "npy" else np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def shape_of(folder: Path) -> tuple[int, int, int]:
    """(H, W, C)."""
    description = read_description(folder / "shards")
    return description.size, description.size, description.channels


class Files(Dataset):
    def __init__(self, folder: Path, encoding: str):
        self.files, self.encoding = sorted((folder / "files").iterdir()), encoding
        self.shape = shape_of(folder)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return decode(self.files[i].read_bytes(), self.encoding, "L" if self.shape[2] == 1 else "RGB"), 3


def folder_batches(folder: Path, encoding: str, images: int) -> Iterable:
    return DataLoader(Files(folder, encoding), BATCH, shuffle=True, num_workers=1)


def decode_into(out: np.ndarray, data: bytes, encoding: str) -> None:
    """The least that turns a file into an image ``(H, W, C)``, on trust."""
    if encoding == "npy":
        out[:] = np.frombuffer(data, np.uint8, offset=len(data) - out.size).reshape(out.shape)
    else:
        plugin = PngImagePlugin.PngImageFile if encoding == "png" else JpegImagePlugin.JpegImageFile
        out[:] = np.asarray(plugin(io.BytesIO(data))).reshape(out.shape)


def batch_of(files: Sequence[bytes], encoding: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays, which go through a pipe: for tensors of this size the processes would shake hands for longer."""
    images = np.empty((len(files), *shape), np.uint8)
    for out, data in zip(images, files):
        decode_into(out, data, encoding)
    return images, np.full(len(files), 3)


class LeanFiles(Files):
    """Batches at a time."""

    def __getitems__(self, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return batch_of([read_file(self.files[i]) for i in numbers], self.encoding, self.shape)


def read_file(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def as_it_is(batch):
    return batch


def lean_folder_batches(folder: Path, encoding: str, images: int) -> Iterable:
    data = LeanFiles(folder, encoding)
    return DataLoader(data, BATCH, shuffle=True, num_workers=1, collate_fn=as_it_is)


def lean_webdataset_batches(folder: Path, encoding: str, images: int) -> Iterable:
    shards = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=100).shuffle(WINDOW).to_tuple(encoding)
    shape = shape_of(folder)
    data = data.batched(BATCH, collation_fn=lambda samples: batch_of([data for (data,) in samples], encoding, shape))
    return webdataset.WebLoader(data, batch_size=None, num_workers=1)


class MappedArray(Dataset):
    """One array of all images, which a shuffle can only have in an order that no disk likes."""

    def __init__(self, path: Path):
        self.images = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return self.images[numbers], np.full(len(numbers), 3)


def mapped_batches(folder: Path, encoding: str, images: int) -> Iterable:
    data = MappedArray(folder / "images.npy")
    return DataLoader(data, BATCH, shuffle=True, num_workers=1, collate_fn=as_it_is)


def streaming_batches(folder: Path, encoding: str, images: int) -> Iterable:
    import streaming

    class Decoded(streaming.StreamingDataset):
        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            sample = super().__getitem__(i)
            return decode(sample["image"], encoding), sample["label"]

    data = Decoded(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return DataLoader(data, BATCH, num_workers=1)


def speed(read: Callable[[Path, str, int], Iterable], folder: Path, encoding: str, images: int) -> tuple[float, float]:
    """Images per second, and seconds of processor per image."""
    busy, begin, count = processor_seconds(), time.perf_counter(), 0
    for batch, _ in read(folder, encoding, images):
        count += len(batch)
    taken = time.perf_counter() - begin
    gc.collect()  # Ends the worker, whose time counts then.
    return count / taken, (processor_seconds() - busy) / count


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return sum(times[:4])


def fashion_mnist(images: int) -> np.ndarray:
    """The first training images ``(images, 28, 28, 1)``."""
    read = idx(packing_share.FASHION_MNIST, "fashion").splits["train"][0].open()
    return np.stack([read(i)[0] for i in range(min(images, 10_000))])[..., None]


def throughput(folder: Path, images: int, rounds: int) -> None:
    sets = {"": np.stack([picture(i) for i in range(images)])}
    if packing_share.FASHION_MNIST.is_dir():
        sets["fashion-"] = fashion_mnist(images)
    for name, pictures in sets.items():
        for encoding in ("npy", "png") if name else ("npy", "png", "jpg"):
            make(folder / f"{name}{encoding}", encoding, pictures)
            read_all(folder / f"{name}{encoding}", encoding, len(pictures), rounds)


def read_all(folder: Path, encoding: str, images: int, rounds: int) -> None:
    readers = {
        "fdtrain": fdtrain_batches,
        "folder at its best": lean_folder_batches,
        "webdataset at its best": lean_webdataset_batches,
        "folder of files": folder_batches,
        "webdataset": webdataset_batches,
    }
    if import_streaming():
        readers["mosaicml-streaming"] = streaming_batches
    if encoding == "npy":
        readers["memory-mapped npy"] = mapped_batches
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for i in range(rounds):
        # In alternating order: what disturbs a machine often grows or fades.
        for name, read in list(readers.items())[:: -1 if i % 2 else 1]:
            found[name].append(speed(read, folder, encoding, images))
    own = found["fdtrain"]
    for name, values in found.items():
        rates, busy = zip(*values)
        ratios = sorted(a / b for (a, _), b in zip(own, rates, strict=True))
        saved = sorted(b / a for (_, a), b in zip(own, busy, strict=True))
        print(
            f"{folder.name:<11}  {name:<23} {statistics.median(rates):8,.0f} images/s"
            f"   fdtrain is {statistics.median(ratios):5.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}),"
            f" by processor time ({1e6 * statistics.median(busy):6.1f} us/image)"
            f" {statistics.median(saved):5.2f}x ({saved[0]:.2f} to {saved[-1]:.2f})",
            flush=True,
        )


def memory(folder: Path, images: int) -> None:
    """Resident memory of the worker from a tenth of the first epoch on."""
    for encoding in ("npy", "png"):
        steps = 2 * images // BATCH
        batches = Batches(lane_dataset(folder / encoding / "shards"), 0, steps, workers=1)
        marks = []
        for k, _ in enumerate(batches):
            if k >= steps // 10 and k % (steps // 20) == 0 and k < steps - 8:
                marks.append(resident_mib(multiprocessing.active_children()[0].pid))
        print(
            f"{encoding}  worker memory over 2 epochs: {marks[0]:.1f} MiB at first, {max(marks):.1f} at most "
            f"({100 * (max(marks) / marks[0] - 1):+.1f} %)"
        )


def resident_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


@dataclass(frozen=True)
class Pool:
    """Any number of images whose reading costs nothing: the same 1,000 again and again."""

    images: np.ndarray
    length: int
    resident: list[float] = field(default_factory=list)

    def read(self, index: int) -> Sample:
        if index % 1000 == 0:
            self.resident.append(resident_mib(os.getpid()))
        return self.images[index % len(self.images)], 3, "an image"


def pack_fdtrain(pool: Pool, encoding: str, folder: Path) -> None:
    part = Part(str(pool.length), pool.length, lambda: pool.read)
    pack(
        Source("benchmark", "made", exactly(32, 3), [str(i) for i in range(10)], {"train": [part]}),
        folder,
        encoding,
        SHARD,
    )


def pack_tarfile(pool: Pool, encoding: str, folder: Path) -> None:
    folder.mkdir()
    for start in range(0, pool.length, SHARD):
        path = folder / f"train-{start // SHARD:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(start, start + SHARD):
                for extension, data in (("cls", b"3"), (encoding, encode(pool.images[i % 1000], encoding))):
                    info = tarfile.TarInfo(f"{i:08d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            hashlib.file_digest(file, "sha256")


def pack_webdataset(pool: Pool, encoding: str, folder: Path) -> None:
    folder.mkdir()
    for start in range(0, pool.length, SHARD):
        samples = ((f"{i:08d}", encoding, encode(pool.images[i % 1000], encoding)) for i in range(start, start + SHARD))
        path = folder / f"train-{start // SHARD:06d}.tar"
        write_shard(path, samples)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def packing(folder: Path, images: int, rounds: int) -> None:
    folder.mkdir()
    pictures = np.stack([picture(i) for i in range(1000)])
    writers = {"fdtrain": pack_fdtrain, "tarfile, np.save": pack_tarfile, "webdataset": pack_webdataset}
    for encoding in ("npy", "png"):
        rates: dict[str, list[float]] = {name: [] for name in writers}
        pool = Pool(pictures, images - images % SHARD)
        for number in range(rounds):
            for name, write in writers.items():
                begin = time.perf_counter()
                write(pool, encoding, folder / f"{encoding}-{name[:3]}-{number}")
                rates[name].append(pool.length / (time.perf_counter() - begin))
        for name, values in rates.items():
            ratios = sorted(a / b for a, b in zip(rates["fdtrain"], values, strict=True))
            print(
                f"packing {encoding}  {name:<16} {statistics.median(values):8,.0f} images/s"
                f"   fdtrain is {statistics.median(ratios):5.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
    packing_share.share(folder / "share", picture, images, rounds)
    pool = Pool(pictures, 10 * images)
    pack_fdtrain(pool, "npy", folder / "memory")
    marks = pool.resident[len(pool.resident) // 10 :]
    print(
        f"packer's memory over {pool.length:,} images: {marks[0]:.1f} MiB after a tenth, {max(marks):.1f} at most "
        f"({100 * (max(marks) / marks[0] - 1):+.1f} %)"
    )


def start_cost(folder: Path) -> None:
    """One shard of 1,000 tiny images under 1,281 names: what is read of it is read as often as of 1,281 shards."""
    folder.mkdir()
    tiny = encode(np.zeros((1, 1, 1), np.uint8), "npy")
    first = write_shard(folder / "train-000000.tar", ((f"{i:08d}", "npy", tiny) for i in range(SHARD)))
    shards = [first.model_copy(update={"file": f"train-{i:06d}.tar"}) for i in range(1281)]
    for shard in shards[1:]:
        os.link(folder / first.file, folder / shard.file)
    describe(folder, shards, 1, 1, "npy")
    epoch = 1281 * SHARD // BATCH
    for k in (0, epoch // 4, epoch // 2, epoch - 1, 10 * epoch + epoch // 3, 1000 * epoch):
        begin = time.perf_counter()
        next(Batches(lane_dataset(folder), k, k + 1, workers=1))
        print(
            f"start at step {k:>10,} (epoch {k / epoch:8.2f}): {time.perf_counter() - begin:.2f} s to the first batch"
        )


def data_wait(folder: Path, steps: int = 40) -> None:
    pack_digits(folder / "digits")
    settings = {"data.path": folder / "digits", "output": folder / "runs", "name": "wait", "training.steps": steps}
    settings |= {"monitor.log_every": 10, "monitor.evaluate_every": "null", "monitor.sample_every": "null"}
    command = [sys.executable, "fdtrain/main.py", "--config", "configs/digits.yaml"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = [json.loads(line) for line in (folder / "runs" / "wait" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["train/data_wait"] for line in lines if "train/data_wait" in line]
    print(f"waiting for data, configs/digits.yaml: {100 * statistics.mean(shares[1:]):.2f} % of the step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--speed", action="store_true", help="images/s alone")
    part.add_argument("--packing", action="store_true", help="packing alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Of the other readers, about arrays that they do not write to.
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.packing:
            packing(folder / "packing", arguments.images, arguments.rounds)
            return
        throughput(folder, arguments.images, arguments.rounds)
        if arguments.speed:
            return
        memory(folder, arguments.images)
        packing(folder / "packing", arguments.images, arguments.rounds)
        start_cost(folder / "many")
        data_wait(folder)


if __name__ == "__main__":
    main()
