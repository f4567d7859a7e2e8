"""Packs a source into WebDataset shards and their ``dataset.json``, on several processes and resumable.

Which images a shard holds follows from the source and the request alone, so neither the number of processes
nor an interruption changes a byte. ``dataset.json`` comes last (docs/packing.md).
"""

import os
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from fdtrain.data import shard_table
from fdtrain.data.dataset import FILE, DatasetDescription, check_length, read_description, write_description
from fdtrain.data.shard_store import PackRequest, ShardStore, alone
from fdtrain.data.sources.source import Part, Source
from fdtrain.data.workers import run
from fdtrain.data.writer import (
    MANY,
    Problem,
    SampleFormat,
    ShardRange,
    describe,
    describing,
    layout,
    refuse,
    write_part,
)
from fdtrain.errors import UserError


def pack(
    source: Source,
    folder: str | Path,
    encoding: str = "npy",
    shard_images: int = 1000,
    workers: int = 1,
    bar: bool = False,
    again: bool = False,
) -> DatasetDescription:
    """Pack ``source`` into ``folder``, or finish what an earlier call with the same request began.

    What another request began is replaced if it has finished no shard, or cannot be finished for its bad images.

    Args:
        encoding: ``npy`` (uint8, read fastest) or ``png`` (a half to a third of the bytes).
        shard_images: of a shard, about: no shard spans two parts of the source.
        again: replace what another request has packed in the folder.

    Raises:
        UserError: the source is broken (all its bad images are named), or the folder holds something else, is being
            packed, or cannot be written.
    """
    folder = Path(folder)
    with alone(folder):
        store = ShardStore(folder, _request(source, encoding, shard_images))
        _check_folder(store, again)
        if (folder / FILE).exists():
            return _complete(folder)
        store.prepare()
        if not store.begun().images:
            store.store_request(images=_count(source, workers, bar), bad_images=False)
        request = store.begun()
        _write_shards(source, request, store, workers, bar)
        splits = {split: store.shards_of(_cuts({split: parts})) for split, parts in _plan(request).items()}
        with store.writing(folder / FILE):
            os.sync()
            write_description(folder, request.description, splits)
            store.remove()
    return read_description(folder)


def pack_digits(folder: str | Path, shard_images: int = 100) -> DatasetDescription:
    """The embedded data set, in this process."""
    # Loaded here: worker processes import this module, and have no use for scikit-learn.
    from fdtrain.data.sources.digits import digits

    return pack(digits(), folder, shard_images=shard_images)


def _request(source: Source, encoding: str, shard_images: int) -> PackRequest:
    with describing():
        description = describe(
            source.splits,
            name=source.name,
            source=source.source,
            size=source.fit.size,
            channels=source.fit.channels,
            levels=source.levels,
            classes=source.classes,
            encoding=encoding,
        )
    return PackRequest(description=description, shard_images=shard_images, source=source.identity())


def _check_folder(store: ShardStore, again: bool) -> None:
    """Raises UserError if the folder holds a data set, or shards of another request that cannot be replaced."""
    complete = (store.shards / FILE).exists()
    if complete and not store.request_file.exists():
        raise UserError(f"{store.shards} holds a data set already. Remove it, or choose another folder.")
    if not store.differences():
        return
    begun = None
    with suppress(OSError, ValueError):
        begun = store.begun()
    replaced = begun and (again or (begun.bad_images and not complete))
    if (complete or store.finished()) and not replaced:
        raise UserError(
            f"{store.shards} was packed from another source or with other settings, see {store.request_file.name}. "
            "Repeat those, replace it with --again, or choose another folder."
        )
    # A packer may have been killed between a shard and its record.
    with store.writing(store.shards):
        (store.shards / FILE).unlink(missing_ok=True)
        for part in (store.shards / shard_table.FOLDER).glob("*.shards"):
            part.unlink()
        for file in _cuts(_plan(begun)) if begun else ():
            store.unlink(file)


def _complete(folder: Path) -> DatasetDescription:
    description = read_description(folder)
    for shards in description.splits.values():
        for shard in shards:
            check_length(folder / shard.file, shard)
    return description


def _count(source: Source, workers: int, bar: bool) -> dict[str, list[int]]:
    """Images of every part. Batch files have to be read for it."""
    tasks = [(split, number, part) for split, parts in source.splits.items() for number, part in enumerate(parts)]
    results = run(_count_part, tasks, workers)
    counted = dict(tqdm(results, "counting", len(tasks), unit=" parts", disable=not bar))
    counts = {split: [counted[split, number] for number in range(len(parts))] for split, parts in source.splits.items()}
    for split, images in counts.items():
        if not sum(images):
            raise UserError(f"split '{split}' of {source.source} holds no images. Fetch it again.")
    return counts


def _count_part(split: str, number: int, part: Part) -> tuple[tuple[str, int], int]:
    return (split, number), part.count()


def _plan(request: PackRequest) -> dict[str, list[list[ShardRange]]]:
    return {split: layout(split, counts, request.shard_images) for split, counts in request.images.items()}


def _cuts(plan: dict[str, list[list[ShardRange]]]) -> dict[str, ShardRange]:
    """All shards of a plan by their files."""
    return {cut.file: cut for parts in plan.values() for part in parts for cut in part}


def _write_shards(source: Source, request: PackRequest, store: ShardStore, workers: int, bar: bool) -> None:
    """Write every shard that is not finished yet. UserError names all images that cannot be packed."""
    finished, described = set(store.finished()), request.description
    form = SampleFormat(source.fit, len(described.classes), described.encoding)
    tasks = []
    for split, parts in _plan(request).items():
        for part, wanted in zip(source.splits[split], parts, strict=True):
            left = [cut for cut in wanted if cut.file not in finished]
            if left:
                tasks.append((part, left, store, form))
    problems, total = list[Problem](), sum(map(sum, request.images.values()))
    done, what = total - sum(len(cut.images) for _, left, *_ in tasks for cut in left), f"packing {described.name}"
    with tqdm(desc=what, total=total, initial=done, unit=" images", disable=not bar) as shown:
        for count, found in run(write_part, tasks, workers):
            shown.update(count)
            problems += found
            if len(problems) >= MANY:
                break
    if problems:
        store.store_request(images=request.images, bad_images=True)
    refuse(problems, source.source)
