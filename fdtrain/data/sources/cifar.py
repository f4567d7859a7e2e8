"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as published: ``cifar-10-python.tar.gz``, or the unpacked folder."""

from pathlib import Path

from fdtrain.data.sources import pickled
from fdtrain.data.sources.archive import stream
from fdtrain.data.sources.batches import BatchFormat, batch_files, batch_part
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError


def cifar10(path: Path) -> Source:
    """50,000 images to train and 10,000 to test, 32x32 RGB, in ten classes. UserError: as of :func:`batch_files`."""
    splits = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _cifar(path, 10, "batches.meta", splits, "label")


def cifar100(path: Path) -> Source:
    """The same in a hundred classes, the fine ones."""
    return _cifar(path, 100, "meta", {"train": ["train"], "test": ["test"]}, "fine_label")


def _cifar(path: Path, number: int, meta: str, splits: dict[str, list[str]], label: str) -> Source:
    wanted = f"Give cifar-{number}-python.tar.gz as published."
    files = batch_files([path], [meta, *splits["train"], *splits["test"]], wanted)
    where = str(files[meta])
    with stream(files[meta]) as file:
        names = pickled.arrays(pickled.load(file, where), where).get(f"{label}_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{where} has no '{label}_names'. {wanted}")
    classes = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    batch = BatchFormat(32, 0, len(classes), f"{label}s")
    return Source(
        name=f"cifar{number}",
        source=path.name,
        size=32,
        channels=3,
        classes=classes,
        splits={split: [batch_part(files[name], batch) for name in names] for split, names in splits.items()},
        published={"train": 50_000, "test": 10_000},
    )
