"""The share of the packer in what decoding and writing alone can do (``python benchmarks/data.py --packing``).

Decoding alone is Pillow or zlib without any check, one image after another; writing alone is as many bytes as the
shards have, in pieces of 1 MiB, synchronised once a shard. Both run in one process and take turns with the packer.
"""

import gzip
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from fdtrain.data.pack import pack
from fdtrain.data.sources.idx import idx
from fdtrain.data.sources.images import images
from fdtrain.data.sources.source import Source

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SHARD = 1000


def fashion() -> Iterator[bytes]:
    """The pixels of each image of Fashion-MNIST, without its headers."""
    for split in ("train", "t10k"):
        data = gzip.decompress((FASHION_MNIST / f"{split}-images-idx3-ubyte.gz").read_bytes())
        for start in range(16, len(data), 784):
            yield data[start : start + 784]


def decoded(folder: Path, size: int) -> Iterator[bytes]:
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
            if side != size:
                square = square.resize((size, size), Image.Resampling.LANCZOS)
            yield np.asarray(square).tobytes()


def write_alone(pixels: Iterator[bytes], bytes_per_image: int, folder: Path) -> int:
    """The pixels, and zeros for all else that shards have. The number of images."""
    folder.mkdir()
    count = 0
    while shard := list(islice(pixels, SHARD)):
        with io.BufferedWriter(io.FileIO(folder / f"{count}.tar", "w"), 1 << 20) as file:
            for data in shard:
                file.write(data)
                file.write(bytes(bytes_per_image - len(data)))
            file.flush()
            os.fsync(file.fileno())
        count += len(shard)
    return count


def share(folder: Path, picture: Callable[[int, int], np.ndarray], count: int, rounds: int) -> None:
    """A line for each source; ``picture`` makes the ``i``-th of a side."""
    folder.mkdir()
    small, large = folder / "small", folder / "large"
    for place, number, side, name in ((small, count, 32, "png"), (large, max(count // 40, SHARD), 512, "jpg")):
        place.mkdir()
        for i in range(number):
            Image.fromarray(picture(i, side)).save(place / f"{i:06d}.{name}")
    cases: dict[str, tuple[Callable[[], Source], Callable[[], Iterator[bytes]]]] = {
        "png 32x32": (lambda: images(small, None, 0, "x", None, None, SHARD), lambda: decoded(small, 32)),
        "jpeg 512x512 to 64x64": (lambda: images(large, None, 0, "x", 64, None, SHARD), lambda: decoded(large, 64)),
    }
    if FASHION_MNIST.is_dir():
        cases["Fashion-MNIST idx"] = (lambda: idx(FASHION_MNIST, "x"), fashion)
    for number, (name, (source, pixels)) in enumerate(cases.items()):
        found: list[tuple[float, float]] = []
        rate = 0.0
        for turn in range(rounds):
            place = folder / f"{number}-{turn}"
            wall, busy = time.perf_counter(), time.process_time()
            description = pack(source(), place, shard_images=SHARD)
            packed = time.perf_counter() - wall, time.process_time() - busy
            shards = [shard for of_split in description.splits.values() for shard in of_split]
            total = sum(shard.images for shard in shards)
            each = sum(shard.bytes for shard in shards) // total
            wall, busy = time.perf_counter(), time.process_time()
            assert write_alone(pixels(), each, folder / f"{number}-{turn}-alone") == total
            alone = time.perf_counter() - wall, time.process_time() - busy
            found.append((alone[0] / packed[0], alone[1] / packed[1]))
            rate = total / packed[0]
        shares, processor = zip(*found, strict=True)
        print(
            f"packing {name:<22} {rate:8,.0f} images/s, {100 * statistics.median(shares):.0f} % of decoding and "
            f"writing alone ({100 * min(shares):.0f} to {100 * max(shares):.0f}); by processor time "
            f"{100 * statistics.median(processor):.0f} % ({100 * min(processor):.0f} to {100 * max(processor):.0f})"
        )
