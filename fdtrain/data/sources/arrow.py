"""A folder that ``save_to_disk`` of the Hugging Face library ``datasets`` has written.

``DatasetDict`` writes ``dataset_dict.json`` with the names of its splits, and a folder for each; ``Dataset`` writes
``state.json`` with the names of its files, which are Arrow streams ``data-00000-of-00002.arrow``.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fdtrain.data.sources.archive import Member, members, read
from fdtrain.data.sources.rows import Choice, table_source
from fdtrain.data.sources.source import SPLIT_NAMES, Source
from fdtrain.errors import UserError

STATE, SPLITS = "state.json", "dataset_dict.json"


def arrow(folder: Path, name: str, choice: Choice) -> Source:
    """Every split of a saved data set, or of one of several that are saved in folders of ``folder``.

    Args:
        folder: what was given to ``save_to_disk``, or the folder of several such.
        name: the name of the data set.

    Raises:
        UserError: no saved data set, several and none chosen, a file or a split is missing; as :func:`table_source`.
    """
    files = {file.name: file for file in members(folder)} if folder.is_dir() else {}
    saved = _saved(files)
    if not saved:
        raise UserError(f"{folder} is no folder of save_to_disk ({STATE} or {SPLITS}). For parquet, use that source.")
    chosen = choice.configuration
    if chosen is None and len(saved) > 1:
        raise UserError(f"{folder} has several data sets: {', '.join(sorted(saved))}. Choose one with --config NAME.")
    if chosen is not None and chosen not in saved:
        raise UserError(f"{folder} has no data set '{chosen}' (it has: {', '.join(sorted(saved))}).")
    splits: dict[str, list[Member]] = {}
    for split, place in saved[chosen or next(iter(saved))].items():
        ours = SPLIT_NAMES.get(split.lower(), split)
        if ours in splits:
            raise UserError(f"{folder} has split '{ours}' twice, under two names. Remove one.")
        splits[ours] = _data_files(files, place, folder)
    return table_source(splits, name, f"{folder.name} (Arrow", folder, choice)


def _saved(files: Mapping[str, Member]) -> dict[str, dict[str, str]]:
    """The folder of each split, by data set: a ``DatasetDict``, or folders of splits side by side, or one ``Dataset``.

    Raises:
        UserError: a split of a ``DatasetDict`` is missing.
    """
    found: dict[str, dict[str, str]] = {}
    for file in files.values():
        place = PurePosixPath(file.name)
        if place.name == SPLITS:
            names = _content(file).get("splits")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f"{file} has no list of 'splits'. Save the data set again.")
            for split in names:
                if str(place.parent / split / STATE) not in files:
                    raise UserError(f"{file} names split '{split}', whose folder lacks {STATE}. Save the set again.")
            found[str(place.parent)] = {split: str(place.parent / split) for split in names}
    named = {place for splits in found.values() for place in splits.values()}
    dictionaries = set(found)
    for file in files.values():
        place = PurePosixPath(file.name)
        if place.name != STATE or str(place.parent) in named:
            continue
        if str(place.parent.parent) in dictionaries and place.parent.name:
            raise UserError(f"{file.path.parent} is no split that the {SPLITS} beside it names. Remove the folder.")
        if place.parent.name.lower() in SPLIT_NAMES:
            found.setdefault(str(place.parent.parent), {})[place.parent.name] = str(place.parent)
        else:
            split = _content(file).get("_split")
            found[str(place.parent)] = {split if isinstance(split, str) else "train": str(place.parent)}
    return found


def _data_files(files: Mapping[str, Member], place: str, folder: Path) -> list[Member]:
    """The files that a ``state.json`` names. Others, such as caches, may lie there."""
    state = files[str(PurePosixPath(place) / STATE)]
    content = _content(state)
    if content.get("_indices_data_files"):
        raise UserError(f"{state}: rows are chosen by an index, as old versions wrote it. Save the data set again.")
    named = content.get("_data_files")
    if not isinstance(named, list):
        raise UserError(f"{state} has no list of '_data_files'. Save the data set again.")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in named]
    if not all(isinstance(name, str) and name.endswith(".arrow") and "/" not in name for name in names):
        raise UserError(f"{state} names files that are no .arrow files beside it. Save the data set again.")
    wanted = [str(PurePosixPath(place) / str(name)) for name in names]
    if missing := [name for name in wanted if name not in files]:
        raise UserError(f"{state} names {', '.join(missing[:10])}, which {folder} lacks. Fetch what is missing.")
    if len(set(wanted)) < len(wanted):
        raise UserError(f"{state} names a file twice. Save the data set again.")
    return [files[name] for name in wanted]


def _content(file: Member) -> dict[str, Any]:
    try:
        content = json.loads(read(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}). Save the data set again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no JSON object. Save the data set again.")
    return content
