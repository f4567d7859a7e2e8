"""The program under attack. One target for each kind of thing that comes from outside."""

import os
import pickle
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp  # noqa: F401  What is imported at need is imported before the limits hold.
import datasets
import datasets.packaged_modules
import pyarrow.parquet  # noqa: F401
import torch  # noqa: F401
from children import digest
from PIL import Image

from fdtrain.config import load_config
from fdtrain.data import fetch
from fdtrain.data.cache import Cache
from fdtrain.data.dataset import parse_description
from fdtrain.data.location import locate
from fdtrain.data.shards import ShardReader
from fdtrain.data.sources.archive import members
from fdtrain.data.sources.batches import BatchFormat, batch_part
from fdtrain.data.sources.hub import hub
from fdtrain.data.sources.images import images
from fdtrain.data.sources.picture import decode, exactly
from fdtrain.data.sources.rows import Choice
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

SECONDS = 0.5
"""For remote things: tries follow each other quickly, and end soon."""


def shard(folder: str) -> list:
    """``[digest, label]`` of every sample of the split 'train', or what is wrong with it."""
    data = locate(folder)
    return _samples(data.split("train"), data.description)


def remote(url: str, folder: str) -> list:
    data = locate(url, seconds=SECONDS)
    return _samples(data.split("train"), data.description, Cache(folder, None, SECONDS))


def _samples(placed: list, description, cache: Cache | None = None) -> list:
    reader, found = ShardReader(placed, description, cache), []
    for number, one in enumerate(placed):
        for index in range(one.shard.images):
            pixels, labels, broken = reader.read([(number, index)])
            found.append(broken[0] if broken else [digest(pixels[0].transpose(1, 2, 0)), int(labels[0])])
    return found


def archive(path: str) -> list:
    """``[split, digest, class]`` of every image of a folder, zip or tar, or what is wrong with it."""
    return _source(images(Path(path), None, 0, "x", None, 3, 100))


def table(folder: str) -> list:
    """The same of a folder of parquet files, or of save_to_disk."""
    datasets.config.HF_DATASETS_CACHE = Path(folder) / ".cache"
    return _source(hub(folder, "x", Choice(), 100))


def single(folder: str) -> list:
    return [digest(decode(Path(folder, "a").read_bytes(), "a", exactly(4, 3)))]


def batch(folder: str) -> list:
    """The number of images of a batch file."""
    [member] = members(Path(folder))
    return [batch_part(member, BatchFormat(4, 1, 10)).count()]


def _source(source: Source) -> list:
    found = []
    for split, parts in sorted(source.splits.items()):
        for part in parts:
            read = part.open()
            for index in range(part.count()):
                try:
                    picture, label, where = read(index)
                    pixels = decode(picture, where, source.fit)
                except UserError as error:
                    found.append(str(error))
                else:
                    # Labels beyond the classes are refused when it is packed.
                    found.append([split, digest(pixels), source.classes[label : label + 1] if label >= 0 else None])
    return found


def description(path: str) -> dict:
    text = Path(path).read_bytes().decode(errors="replace")
    found = parse_description(text, "")
    splits = {name: [shard.model_dump(exclude_none=True) for shard in table] for name, table in found.splits.items()}
    return found.model_dump(exclude_unset=True, exclude={"splits"}) | {"splits": splits}


def configuration(folder: str) -> None:
    load_config(Path(folder, "a.yaml"))


def misbehave(path: str) -> None:
    """What no other target may do, so that the watch can be tested."""
    with open("/etc/passwd"), suppress(FileNotFoundError):
        os.remove("/nowhere/x")
    os.system("true")
    subprocess.run(["true"], check=True)
    pickle.loads(pickle.dumps(Path))


def swell() -> None:
    bytearray(1 << 34)


TARGETS = (shard, remote, archive, single, table, batch, description, configuration, misbehave, swell)
REFUSALS = UserError
fetch.FIRST_PAUSE_SECONDS, fetch.STALL_SECONDS = 0.01, 0.3
Image.init()
with TemporaryDirectory() as folder, suppress(UserError):
    (Path(folder) / "train.parquet").touch()
    table(folder)
