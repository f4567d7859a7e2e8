"""CIFAR-10 (Krizhevsky 2009) as published: ``cifar-10-python.tar.gz``, or the unpacked folder."""

from pathlib import Path, PurePosixPath

from fdtrain.data.sources import pickled
from fdtrain.data.sources.archive import members, stream
from fdtrain.data.sources.batches import BatchFile
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

SPLITS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def cifar10(path: Path) -> Source:
    """50,000 images to train and 10,000 to test, 32x32 RGB, in ten classes.

    Raises:
        UserError: the archive lacks a batch or is broken.
    """
    files = {PurePosixPath(member.name).name: member for member in members(path)}
    missing = [name for name in ["batches.meta", *SPLITS["train"], *SPLITS["test"]] if name not in files]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}. Give cifar-10-python.tar.gz as published.")
    where = str(files["batches.meta"])
    with stream(files["batches.meta"]) as file:
        names = pickled.arrays(pickled.load(file, where), where).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{where} has no 'label_names'. Give cifar-10-python.tar.gz as published.")
    classes = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    return Source(
        name="cifar10",
        source=path.name,
        size=32,
        channels=3,
        classes=classes,
        splits={split: [BatchFile(files[n], 32, 0, len(classes)) for n in names] for split, names in SPLITS.items()},
        published={"train": 50_000, "test": 10_000},
    )
