"""A source to WebDataset shards and their ``dataset.json``, over processes, and going on after a kill.

Which images a shard holds follows from the source and the request alone, so neither the number of processes
nor an interruption changes a byte. A folder being packed holds ``packing.json``, what was asked for, and in
``.packing/`` the record of each shard that is finished; ``dataset.json`` comes last (docs/packing.md).
"""

import fcntl
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from fdtrain.data.dataset import FILE, VERSION, Description, Shard, check_split, read_description, write_description
from fdtrain.data.processes import progress, run, stopped
from fdtrain.data.sources.source import Part, Sample, Source, even
from fdtrain.errors import UserError

REQUEST = "packing.json"
WORK = ".packing"
ENCODINGS = ("npy", "png")


class Request(BaseModel):
    """What was asked for (``source`` is its identity), and how many images each part of each split holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Description
    shard_images: int
    source: str
    images: dict[str, list[int]]


class Cut(NamedTuple):
    """One shard to be: its file, the number of its first image in the split, and its images in the part."""

    file: str
    first: int
    images: range


class Form(NamedTuple):
    """What every sample must be like, and how it is written."""

    shape: tuple[int, int, int]
    classes: int
    encoding: str


def pack(
    source: Source,
    folder: str | Path,
    encoding: str = "npy",
    shard_images: int = 1000,
    workers: int = 1,
    bar: bool = False,
) -> Description:
    """Pack ``source`` into ``folder``, or finish what an earlier call with the same request began.

    Args:
        source: to pack.
        folder: for shards and ``dataset.json``.
        encoding: ``npy`` (uint8, read fastest) or ``png`` (a half to a third of the bytes).
        shard_images: of a shard, about: no shard spans two parts of the source.
        workers: processes; 1: this one.
        bar: show progress.

    Raises:
        UserError: the source is broken, or the folder holds something else or is being packed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        request = _request(source, encoding, shard_images)
        begun = _begun(folder, request)
        if (folder / FILE).exists():
            return _complete(folder)
        (folder / WORK).mkdir(exist_ok=True)
        if begun is None:
            request = request.model_copy(update={"images": _count(source, workers, bar)})
            _write_text(folder / REQUEST, request.model_dump_json(indent=1))
        else:
            request = begun
        splits = _write_shards(source, request, folder, workers, bar)
        description = request.description.model_copy(update={"splits": splits})
        write_description(folder, description)
        shutil.rmtree(folder / WORK)
    return description


def pack_digits(folder: str | Path, shard_images: int = 100) -> Description:
    """The embedded data set, in this process."""
    # Loaded here: worker processes import this module, and have no use for scikit-learn.
    from fdtrain.data.sources.digits import digits

    return pack(digits(), folder, shard_images=shard_images)


def _request(source: Source, encoding: str, shard_images: int) -> Request:
    if encoding not in ENCODINGS or shard_images < 1:
        raise ValueError("encoding is npy or png, shard_images positive")
    description = Description(
        version=VERSION,
        name=source.name,
        source=source.source,
        size=source.size,
        channels=source.channels,
        levels=source.levels,
        classes=source.classes,
        encoding=encoding,
        splits={},
    )
    return Request(description=description, shard_images=shard_images, source=source.identity(), images={})


def _begun(folder: Path, request: Request) -> Request | None:
    """The same request as it was begun before, with its counts.

    Raises:
        UserError: another one was.
    """
    file = folder / REQUEST
    if not file.exists():
        if (folder / FILE).exists():
            raise UserError(f"{folder} holds a data set already. Remove it, or choose another folder.")
        return None
    try:
        begun = Request.model_validate_json(file.read_bytes())
    except ValidationError:
        begun = None
    if begun is None or begun.model_copy(update={"images": {}}) != request:
        raise UserError(
            f"{folder} was packed from another source or with other settings, see {REQUEST}. Repeat those, "
            "remove the folder, or choose another."
        )
    return begun


def _complete(folder: Path) -> Description:
    description = read_description(folder)
    for split in description.splits:
        check_split(folder, description, split)
    return description


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other packers; the system lets go of it however this process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{folder} is being packed by another process. Wait for it, or stop it.") from None
    finally:
        os.close(handle)


def _count(source: Source, workers: int, bar: bool) -> dict[str, list[int]]:
    """Images of every part. Batch files have to be read for it."""
    tasks = [(split, number, part) for split, parts in source.splits.items() for number, part in enumerate(parts)]
    counts = {split: [0] * len(parts) for split, parts in source.splits.items()}
    found = run(_count_part, tasks, workers)
    for split, number, count in tqdm(found, "counting", len(tasks), unit=" parts", disable=not bar):
        counts[split][number] = count
    for split in counts:
        if not sum(counts[split]):
            raise UserError(f"split '{split}' of {source.source} holds no images. Fetch it again.")
    return counts


def _count_part(split: str, number: int, part: Part) -> tuple[str, int, int]:
    return split, number, part.count()


def layout(split: str, counts: list[int], shard_images: int) -> list[list[Cut]]:
    """The shards of a split, part by part, numbered throughout."""
    cuts, shards, first = [], 0, 0
    for count in counts:
        ranges = even(count, shard_images)
        cuts.append(
            [Cut(f"{split}-{shards + i:06d}.tar", first + images.start, images) for i, images in enumerate(ranges)]
        )
        shards, first = shards + len(ranges), first + count
    return cuts


def _write_shards(source: Source, request: Request, folder: Path, workers: int, bar: bool) -> dict[str, list[Shard]]:
    """Write every shard that is not finished yet."""
    plan = {split: layout(split, counts, request.shard_images) for split, counts in request.images.items()}
    cuts = {cut.file: cut for parts in plan.values() for part in parts for cut in part}
    described = request.description
    form = Form((described.size, described.size, described.channels), len(described.classes), described.encoding)
    tasks = []
    for split, parts in plan.items():
        for part, wanted in zip(source.splits[split], parts, strict=True):
            left = [cut for cut in wanted if finished(folder, cut) is None]
            if left:
                tasks.append((part, left, folder, form))

    def done() -> int:
        """Images in finished shards."""
        names = (name.removesuffix(".json") for name in os.listdir(folder / WORK) if name.endswith(".tar.json"))
        return sum(len(cuts[name].images) for name in names if name in cuts)

    with progress(sum(map(sum, request.images.values())), done, f"packing {described.name}", bar):
        for _ in run(write_part, tasks, workers):
            pass
    return {split: [finished(folder, cut) for part in parts for cut in part] for split, parts in plan.items()}


def finished(folder: Path, cut: Cut) -> Shard | None:
    """The record of a shard that is there in full; it is written after the shard was renamed into place."""
    try:
        shard = Shard.model_validate_json((folder / WORK / f"{cut.file}.json").read_bytes())
        there = (folder / cut.file).stat().st_size == shard.bytes
    except (FileNotFoundError, ValidationError):
        return None
    return shard if there else None


def write_part(part: Part, cuts: list[Cut], folder: Path, form: Form) -> None:
    """Write some of the shards of a part."""
    read = part.open()
    for cut in cuts:
        if stopped():
            return
        _write_shard(read, cut, folder, form)


def _write_shard(read: Callable[[int], Sample], cut: Cut, folder: Path, form: Form) -> None:
    """Write aside, rename, record. Times and owners are fixed: the same samples give the same bytes."""
    # A process that outlives its killed parent by a moment must not write into the same file.
    aside = folder / WORK / f"{cut.file}.{os.getpid()}"
    try:
        with aside.open("w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, index in enumerate(cut.images, cut.first):
                    image, label = read(index)
                    _check(image, label, form, f"image {number} of {cut.file}")
                    if label >= 0:
                        _add(tar, f"{number:08d}.cls", str(label).encode())
                    _add(tar, f"{number:08d}.{form.encoding}", encode(image, form.encoding))
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(aside, folder / cut.file)
        shard = Shard(file=cut.file, images=len(cut.images), bytes=size, sha256=digest)
        _write_text(folder / WORK / f"{cut.file}.json", shard.model_dump_json())
    except OSError as error:
        raise UserError(
            f"{folder / cut.file} cannot be written ({error}). Mend that, and the same command goes on."
        ) from error


def _check(image: np.ndarray, label: int, form: Form, where: str) -> None:
    if image.shape != form.shape or image.dtype != np.uint8:
        raise ValueError(f"{where}: {image.dtype} of shape {image.shape}, the source says {form.shape}")
    if label >= form.classes:
        raise UserError(f"{where} has label {label}, but the source has {form.classes} classes. Correct the source.")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o444
    info.uname = info.gname = "bigdata"  # As webdataset's own writer has it.
    tar.addfile(info, io.BytesIO(data))


def encode(image: np.ndarray, encoding: str) -> bytes:
    """``(H, W, C)`` uint8 to the bytes of a .npy or .png file."""
    file = io.BytesIO()
    if encoding == "npy":
        np.save(file, np.ascontiguousarray(image), allow_pickle=False)
    else:
        Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)).save(file, "PNG")
    return file.getvalue()


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text + "\n")
    os.replace(aside, path)
