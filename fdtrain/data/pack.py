"""Packs a source into WebDataset shards and their ``dataset.json``, on several processes and resumable.

Which images a shard holds follows from the source and the request alone, so neither the number of processes
nor an interruption changes a byte. A folder being packed holds ``packing.json``, what was asked for, and in
``.packing/`` the record of each shard that is finished; ``dataset.json`` comes last (docs/packing.md).
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from fdtrain.data.dataset import (
    FILE,
    VERSION,
    DatasetDescription,
    Shard,
    check_split,
    read_description,
    write_description,
)
from fdtrain.data.sources.source import Part, Source
from fdtrain.data.workers import progress, run
from fdtrain.data.writer import (
    ENCODINGS,
    MANY,
    REPORTED,
    WORK,
    BadImages,
    SampleFormat,
    ShardRange,
    finished,
    layout,
    record,
    write_part,
    write_record,
    writing,
)
from fdtrain.errors import UserError
from fdtrain.files import exclusive

REQUEST = "packing.json"


class PackRequest(BaseModel):
    """The arguments of a pack (``source`` is its identity), and the number of images of each part of each split.

    ``bad_images`` is whether some cannot be packed: then this request is finished only if they are replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: DatasetDescription
    shard_images: int
    source: str
    images: dict[str, list[int]]
    bad_images: bool = False

    def same(self, other: "PackRequest") -> bool:
        """Whether the arguments are equal. The results stored since do not count."""
        results = {"images": {}, "bad_images": False}
        return self.model_copy(update=results) == other.model_copy(update=results)


def pack(
    source: Source,
    folder: str | Path,
    encoding: str = "npy",
    shard_images: int = 1000,
    workers: int = 1,
    bar: bool = False,
) -> DatasetDescription:
    """Pack ``source`` into ``folder``, or finish what an earlier call with the same request began.

    What another request began is replaced if it has finished no shard, or cannot be finished for its bad images.

    Args:
        source: to pack.
        folder: for shards and ``dataset.json``.
        encoding: ``npy`` (uint8, read fastest) or ``png`` (a half to a third of the bytes).
        shard_images: of a shard, about: no shard spans two parts of the source.
        workers: processes; 1: this one.
        bar: show progress.

    Raises:
        UserError: the source is broken (all its bad images are named), or the folder holds something else, is being
            packed, or cannot be written.
    """
    folder = Path(folder)
    with _alone(folder):
        request = _request(source, encoding, shard_images)
        begun = _begun(folder, request)
        if (folder / FILE).exists():
            return _complete(folder)
        _prepare(folder)
        if begun is None:
            request = request.model_copy(update={"images": _count(source, workers, bar)})
            write_record(folder / REQUEST, request.model_dump_json(indent=1))
        else:
            request = begun
        splits = _write_shards(source, request, folder, workers, bar)
        description = request.description.model_copy(update={"splits": splits})
        with writing(folder / FILE):
            write_description(folder, description)
            shutil.rmtree(folder / WORK)
    return description


def pack_digits(folder: str | Path, shard_images: int = 100) -> DatasetDescription:
    """The embedded data set, in this process."""
    # Loaded here: worker processes import this module, and have no use for scikit-learn.
    from fdtrain.data.sources.digits import digits

    return pack(digits(), folder, shard_images=shard_images)


def _request(source: Source, encoding: str, shard_images: int) -> PackRequest:
    if encoding not in ENCODINGS or shard_images < 1:
        raise ValueError("encoding is npy or png, shard_images positive")
    for text in (source.name, source.source, *source.classes):
        # File systems and archives have names in any bytes.
        if not text.isascii() and text.encode(errors="replace").decode() != text:
            raise UserError(f"the name {text!a} of the data set or of a class is not UTF-8. Rename its file or folder.")
    description = DatasetDescription(
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
    return PackRequest(description=description, shard_images=shard_images, source=source.identity(), images={})


def _begun(folder: Path, request: PackRequest) -> PackRequest | None:
    """The same request of an earlier call, with its counts. The files of one that can be replaced are removed.

    Raises:
        UserError: an earlier call made another request, and finished some of its shards.
    """
    file = folder / REQUEST
    complete = (folder / FILE).exists()
    if not file.exists():
        if complete:
            raise UserError(f"{folder} holds a data set already. Remove it, or choose another folder.")
        return None
    try:
        begun = PackRequest.model_validate_json(file.read_bytes())
    except (ValidationError, OSError):
        begun = None
    if begun is not None and begun.same(request):
        return begun
    done = _finished(folder)
    if complete or (done and not (begun and begun.bad_images)):
        raise UserError(
            f"{folder} was packed from another source or with other settings, see {REQUEST}. Repeat those, "
            "remove the folder, or choose another."
        )
    # A packer may have been killed between a shard and its record.
    named = [cut.file for parts in _plan(begun).values() for part in parts for cut in part] if begun else []
    with writing(folder):
        for name in {*done, *named}:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        file.unlink()
    return None


def _finished(folder: Path) -> list[str]:
    """The shards that have a record. One that somebody has deleted since is not there to be protected."""
    names = [path.name.removesuffix(".json") for path in (folder / WORK).glob("*.tar.json")]
    return [name for name in names if (folder / name).exists()]


def _prepare(folder: Path) -> None:
    """Make the folder for unfinished shards, and remove the temporary files of a killed packer."""
    with writing(folder):
        (folder / WORK).mkdir(exist_ok=True)
        for path in (folder / WORK).iterdir():
            if path.suffix != ".json" or path.name.startswith("."):
                path.unlink()


def _complete(folder: Path) -> DatasetDescription:
    description = read_description(folder)
    for split in description.splits:
        check_split(folder, description, split)
    return description


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, against other packers."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder, "packed", "process"))
        except OSError as error:
            raise UserError(f"{folder} cannot be a folder of shards ({error.strerror}). Choose another.") from error
        yield


def _count(source: Source, workers: int, bar: bool) -> dict[str, list[int]]:
    """Images of every part. Batch files have to be read for it."""
    tasks = [(split, number, part) for split, parts in source.splits.items() for number, part in enumerate(parts)]
    counts = {split: [0] * len(parts) for split, parts in source.splits.items()}
    results = run(_count_part, tasks, workers)
    for split, number, count in tqdm(results, "counting", len(tasks), unit=" parts", disable=not bar):
        counts[split][number] = count
    for split in counts:
        if not sum(counts[split]):
            raise UserError(f"split '{split}' of {source.source} holds no images. Fetch it again.")
    return counts


def _count_part(split: str, number: int, part: Part) -> tuple[str, int, int]:
    return split, number, part.count()


def _plan(request: PackRequest) -> dict[str, list[list[ShardRange]]]:
    return {split: layout(split, counts, request.shard_images) for split, counts in request.images.items()}


def _write_shards(
    source: Source, request: PackRequest, folder: Path, workers: int, bar: bool
) -> dict[str, list[Shard]]:
    """Write every shard that is not finished yet.

    Raises:
        UserError: images that cannot be packed, all of them.
    """
    plan = _plan(request)
    cuts = {cut.file: cut for parts in plan.values() for part in parts for cut in part}
    described = request.description
    form = SampleFormat(
        (described.size, described.size, described.channels), len(described.classes), described.encoding
    )
    tasks = []
    for split, parts in plan.items():
        for part, wanted in zip(source.splits[split], parts, strict=True):
            left = [cut for cut in wanted if finished(folder, cut) is None]
            if left:
                tasks.append((part, left, folder, form))

    def done() -> int:
        """Images in finished shards."""
        return sum(len(cuts[name].images) for name in _finished(folder) if name in cuts)

    found: list[BadImages] = []
    with progress(sum(map(sum, request.images.values())), done, f"packing {described.name}", bar):
        for bad in run(write_part, tasks, workers):
            found.append(bad)
            if sum(bad.count for bad in found) >= MANY:
                break
    if any(bad.count for bad in found):
        write_record(folder / REQUEST, request.model_copy(update={"bad_images": True}).model_dump_json(indent=1))
        raise UserError(_report(found, source))
    return {split: [record(folder, cut) for part in parts for cut in part] for split, parts in plan.items()}


def _report(results: list[BadImages], source: Source) -> list[str]:
    """The number of bad images, and a line for each of the first ones."""
    count = sum(bad.count for bad in results)
    first = sorted(image for bad in results for image in bad.first)[:REPORTED]
    if count == 1:
        return [first[0].problem]
    much = f"{count} images" if count < MANY else f"{MANY} images or more (the packer went no further)"
    shown = f"The first {len(first)}:" if count > len(first) else "They are:"
    return [f"{much} of {source.source} cannot be packed. {shown}", *(image.problem for image in first)]
