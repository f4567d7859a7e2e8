"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as published: ``cifar-10-python.tar.gz``, or the unpacked folder."""

from pathlib import Path, PurePosixPath

from fdtrain.data.sources import pickled
from fdtrain.data.sources.archive import members, stream
from fdtrain.data.sources.batches import BatchFile
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

CIFAR10 = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CIFAR100 = {"train": ["train"], "test": ["test"]}


def cifar10(path: Path) -> Source:
    """50,000 images to train and 10,000 to test, 32x32 RGB, in ten classes.

    Raises:
        UserError: the archive lacks a batch or is broken.
    """
    return _cifar(path, 10, "batches.meta", CIFAR10, "label")


def cifar100(path: Path) -> Source:
    """The same in a hundred classes, the fine ones.

    Raises: as :func:`cifar10`.
    """
    return _cifar(path, 100, "meta", CIFAR100, "fine_label")


def _cifar(path: Path, number: int, meta: str, batches: dict[str, list[str]], label: str) -> Source:
    files = {PurePosixPath(member.name).name: member for member in members(path)}
    missing = [name for name in [meta, *batches["train"], *batches["test"]] if name not in files]
    wanted = f"Give cifar-{number}-python.tar.gz as published."
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}. {wanted}")
    where = str(files[meta])
    with stream(files[meta]) as file:
        names = pickled.arrays(pickled.load(file, where), where).get(f"{label}_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{where} has no '{label}_names'. {wanted}")
    classes = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]

    def part(name: str) -> BatchFile:
        return BatchFile(files[name], 32, 0, len(classes), f"{label}s")

    return Source(
        name=f"cifar{number}",
        source=path.name,
        size=32,
        channels=3,
        classes=classes,
        splits={split: [part(name) for name in names] for split, names in batches.items()},
        published={"train": 50_000, "test": 10_000},
    )
