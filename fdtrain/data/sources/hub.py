"""The files of each split of a configuration in a folder from the Hugging Face hub."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fdtrain.data.sources.archive import Member
from fdtrain.data.sources.source import SPLIT_NAMES
from fdtrain.errors import UserError

TOP = "."
"""The configuration of files that are in no folder of a configuration."""


class _Place(NamedTuple):
    """The meaning of a file's name; ``number`` and ``total`` are given where it is one of several."""

    configuration: str
    split: str
    number: int | None
    total: int | None


def splits(files: Sequence[Member], configuration: str | None, where: Path) -> dict[str, list[Member]]:
    """The files of each split, in order.

    ``CONFIGURATION/train-00000-of-00002.parquet`` and ``CONFIGURATION/train/0000.parquet`` both belong to split
    ``train``; so does ``train.parquet``.

    Args:
        configuration: ``None``: the only one.

    Raises:
        UserError: several configurations and none chosen, or the chosen one is absent; a file of a split is missing or
            there twice; a split has files of several layouts.
    """
    places = {file: _place(file.name) for file in files}
    configurations = sorted({place.configuration for place in places.values()})
    if configuration is None and len(configurations) > 1:
        raise UserError(
            f"{where} has several configurations: {', '.join(configurations)}. Choose one with --config NAME."
        )
    chosen = configurations[0] if configuration is None else configuration
    if chosen not in configurations:
        raise UserError(f"{where} has no configuration '{chosen}' (it has: {', '.join(configurations)}).")
    by_split: dict[str, list[tuple[Member, _Place]]] = {}
    for file, place in places.items():
        if place.configuration == chosen:
            name = re.sub(r"[^A-Za-z0-9_]", "_", place.split)
            by_split.setdefault(SPLIT_NAMES.get(name.lower(), name), []).append((file, place))
    return {split: _complete(split, of_split) for split, of_split in by_split.items()}


def _place(name: str) -> _Place:
    folder, _, file = name.rpartition("/")
    stem = file.removesuffix(".parquet")
    if named := re.fullmatch(r"(.+?)-(\d{1,9})-of-(\d{1,9})(-[0-9a-f]+)?", stem):
        # Some have a folder for each split, beside the split in the file's name.
        parent, _, last = folder.rpartition("/")
        configuration = parent if last == named[1] else folder
        return _Place(configuration or TOP, named[1], int(named[2]), int(named[3]))
    number = int(stem) if re.fullmatch(r"\d{1,9}", stem) else None
    if not folder:
        return _Place(TOP, stem, None, None)
    configuration, _, split = folder.rpartition("/")
    return _Place(configuration or TOP, split, number, None)


def _complete(split: str, files: list[tuple[Member, _Place]]) -> list[Member]:
    """The files in order, after checking that none is missing."""
    (first, place), *_ = files
    for file, other in files:
        if (other.split, other.total, other.number is None) != (place.split, place.total, place.number is None):
            raise UserError(f"{first} and {file} are of two sets of files for split '{split}'. Remove one set.")
    if place.number is None:
        return [file for file, _ in files]
    by_number: dict[int, Member] = {}
    numbered = [(other.number, file) for file, other in files if other.number is not None]
    for number, file in sorted(numbered, key=lambda pair: pair[0]):
        if (same := by_number.setdefault(number, file)) is not file:
            raise UserError(f"{same} and {file} are the same part of split '{split}'. Remove one of them.")
    # Without a total only gaps can be noticed, and some tools begin at 1.
    wanted = range(place.total) if place.total is not None else range(min(min(by_number), 1), max(by_number) + 1)
    missing = list(itertools.islice((str(number) for number in wanted if number not in by_number), 10))
    if missing or max(by_number) not in wanted:
        problem = f"lacks part {', '.join(missing)}" if missing else f"has part {max(by_number)}"
        raise UserError(
            f"split '{split}' {problem} of the parts 0 to {wanted[-1]} that {first.path.name} is one of. "
            f"Download what is missing into {first.path.parent}."
        )
    return list(by_number.values())
