"""Data sets of the Hugging Face hub, and folders in its layouts, as the library ``datasets`` opens them.

Nothing of a data set is executed: the library runs no code of a data set since its version 4, and of its readers only
those of ``READERS`` are admitted. The network is reached if ``online`` is asked for, and never otherwise.
"""

import json
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fdtrain.data.sources.archive import members
from fdtrain.data.sources.rows import Choice, row_source
from fdtrain.data.sources.source import SPLIT_NAMES, Source
from fdtrain.errors import UserError, excerpt

if TYPE_CHECKING:
    from datasets import Dataset

READERS = ("arrow", "cache", "imagefolder", "parquet", "webdataset")
"""Of the library's: those of files that hold images, and of what it has fetched before."""
SAVED = ("state.json", "dataset_dict.json")
"""What ``save_to_disk`` writes into a folder."""
MAX_GROUP = 1 << 32
"""The most bytes of a group of rows, which is read at once."""
_PART = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})(?:-[0-9a-f]+)?\.\w+")


def hub(place: str, name: str, choice: Choice, share: int, online: bool = False) -> Source:
    """Every split of a data set, rows in their order.

    Args:
        place: a folder (of files as the hub has them, or of ``save_to_disk``), a parquet file, or a name on the hub.
        online: fetch from the hub what the library's cache lacks.

    Raises:
        UserError: the library cannot open it; files are missing, or do not belong together; as
            :func:`row_source`.
    """
    import datasets  # noqa: F401

    folder = Path(place) if os.path.isdir(place) else None
    if folder is not None:
        # Refuses what is no plain file, and would be waited for.
        members(folder)
    saved = folder is not None and any((folder / file).exists() for file in SAVED)
    with guarded(place, online), nullcontext() if online else _offline():
        opened, paths = (_saved(place), False) if saved else _loaded(place, choice.configuration, folder)
    splits: dict[str, Dataset] = {}
    for split, rows in opened.items():
        ours = SPLIT_NAMES.get(split.lower(), re.sub(r"[^A-Za-z0-9_]", "_", split))
        if ours in splits:
            raise UserError(f"{place} has split '{ours}' twice, under two names. Remove one.")
        splits[ours] = rows
    source = os.path.basename(os.path.abspath(place)) if os.path.exists(place) else place
    return row_source(splits, name, source, choice, share, paths)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the library off the network: it has a switch for that, but fetches URLs that a folder's README.md names."""
    import datasets.config
    import huggingface_hub.constants

    switches = [vars(module) for module in (datasets.config, huggingface_hub.constants)]
    before = [switch["HF_HUB_OFFLINE"] for switch in switches]
    if not _refused:
        # A hook stays for good.
        sys.addaudithook(_refuse_to_connect)
    try:
        for switch in switches:
            switch["HF_HUB_OFFLINE"] = True
        _refused["now"] = True
        yield
    finally:
        _refused["now"] = False
        for switch, value in zip(switches, before, strict=True):
            switch["HF_HUB_OFFLINE"] = value


_refused: dict[str, bool] = {}


def _refuse_to_connect(event: str, arguments: tuple) -> None:
    # Addresses of the network are tuples, those of this machine's own sockets are paths.
    asks = event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple))
    if asks and _refused["now"]:
        raise UserError("this would reach the network. Add --online to allow it.")


@contextmanager
def guarded(place: str, online: bool) -> Iterator[None]:
    """Turn whatever the library raises on a damaged or missing data set into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not os.path.exists(place) and not online:
            raise UserError(
                f"there is no folder {place}, and no data set of this name that was fetched before "
                f"({excerpt(error)}). Correct it, or add --online to fetch it from the Hugging Face hub."
            ) from error
        reason = excerpt(error if error.__cause__ is None else error.__cause__)
        raise UserError(f"{place} cannot be opened by datasets ({reason}). Correct it, or fetch it again.") from error


def _saved(place: str) -> "Mapping[str, Dataset]":
    """What ``save_to_disk`` has written."""
    import datasets

    found = datasets.load_from_disk(place)
    several = isinstance(found, datasets.DatasetDict)
    splits = {str(name): rows for name, rows in found.items()} if several else {str(found.split or "train"): found}
    for rows in splits.values():
        # The files are mapped into memory, and offsets that point elsewhere would be followed.
        rows.data.validate(full=True)
    return splits


def _loaded(place: str, configuration: str | None, folder: Path | None) -> "tuple[Mapping[str, Dataset], bool]":
    """The splits, and whether their images are files of their own, which the library itself has found."""
    import datasets

    if os.path.isfile(place):
        builder = datasets.load_dataset_builder("parquet", data_files={"train": os.path.abspath(place)})
    else:
        builder = datasets.load_dataset_builder(place, configuration)
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in READERS:
        raise UserError(f"{place} is in files that datasets reads by '{reader}', which hold no images. Correct it.")
    files = {str(split): [str(file) for file in found] for split, found in (builder.config.data_files or {}).items()}
    if folder is not None:
        inside = f"{folder.resolve()}/"
        others = [f for found in files.values() for f in found if not os.path.realpath(f).startswith(inside)]
        if others:
            raise UserError(f"{place} names {excerpt(others[0])}, which is not in it. Correct its README.md.")
    if reader != "imagefolder":
        for split, found in files.items():
            _check_complete(place, split, found)
    if reader == "parquet" and os.path.exists(place):
        _check_parquet([file for found in files.values() for file in found])
    builder.download_and_prepare()
    # Of all splits, since none is named.
    splits = cast("datasets.DatasetDict", builder.as_dataset())
    return {str(name): rows for name, rows in splits.items()}, reader == "imagefolder"


def _check_complete(place: str, split: str, files: Sequence[str]) -> None:
    """Raises UserError if files ``train-00000-of-00002`` lack one, or if two sets of files are in one split."""
    numbers: dict[tuple[str, int], list[int]] = {}
    for file in files:
        part = _PART.fullmatch(file)
        key = (part[1], int(part[3])) if part else (posixpath.dirname(file), 0)
        numbers.setdefault(key, []).append(int(part[2]) if part else 0)
    if len(numbers) > 1:
        first, second = (excerpt(posixpath.relpath(stem, place)) for stem, _ in list(numbers)[:2])
        raise UserError(
            f"{place}: split '{split}' has two sets of files, {first} and {second}. Give the folder of one."
        )
    for (stem, total), found in numbers.items():
        known = set(found)
        if total and (missing := next((i for i in range(total) if i not in known), None)) is not None:
            raise UserError(f"{stem}: part {missing} of {total} is missing. Fetch it.")
        if total and len(found) != total:
            raise UserError(f"{stem}: {len(found)} files of {total} parts. Remove those that are there twice.")


def _check_parquet(files: Sequence[str]) -> None:
    """Raises UserError if files have classes other than the first's, by which the library goes, or absurd sizes."""
    import pyarrow.parquet as pq

    first: dict[str, Any] = {}
    for file in files:
        about = pq.read_metadata(file)
        if any(about.row_group(i).total_byte_size > MAX_GROUP for i in range(about.num_row_groups)):
            raise UserError(f"{file} has an absurdly large group of rows. Write it in smaller ones.")
        try:
            described = json.loads((about.schema.to_arrow_schema().metadata or {}).get(b"huggingface", b"{}"))
            columns = (described.get("info") or {}).get("features") or {}
            names = {name: column.get("names") for name, column in columns.items() if isinstance(column, dict)}
        except (ValueError, AttributeError, RecursionError) as error:
            reason = excerpt(error)
            raise UserError(
                f"{file} describes its columns otherwise than the hub ({reason}). Fetch it again."
            ) from error
        first = first or names
        if names != first:
            raise UserError(f"{files[0]} and {file} name different classes, or in another order. Pack them apart.")
