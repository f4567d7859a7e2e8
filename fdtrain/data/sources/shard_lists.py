"""The places of existing shards, from paths, globs, brace patterns, lists, folders and URLs."""

import os
import posixpath
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from fdtrain.credentials import expand_references
from fdtrain.data.braces import expand
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.sources.source import SPLIT_NAMES
from fdtrain.data.text import read_text
from fdtrain.errors import UserError, excerpt

LIST = ".txt"
SECONDS = 60.0
"""How long to try to reach a remote list."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def shard_lists(train: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    """The places of the shards of every split, in order.

    Without ``test``, folders and names with the word train or test (val, valid, validation, dev) are splits.

    Raises:
        UserError: nothing is found, a place is named twice, or only some of the names tell a split.
    """
    found = [place for name in train for place in _places(name)]
    held_out = [place for name in test for place in _places(name)]
    splits = {"train": found, "test": held_out} if test else _by_split(found)
    seen: dict[str, str] = {}
    for split, places in splits.items():
        for place in places:
            identity = place if is_remote(place) else os.path.realpath(place)
            if identity in seen:
                raise UserError(f"{shown(place)} is named twice, for {seen[identity]} and for {split}. Name it once.")
            seen[identity] = split
    return splits


def _places(name: str) -> list[str]:
    """What one argument stands for."""
    try:
        name = expand_references(name)
    except KeyError as error:
        raise UserError(f"{name} names ${{{error.args[0]}}}, which the environment does not have. Set it.") from None
    if name.startswith("pipe:"):
        raise UserError("commands (pipe:) cannot be adopted. Give the shards' paths or URLs.")
    path, mark, query = name.partition("?") if is_remote(name) else (name, "", "")
    if path.endswith(LIST):
        lines = [line.strip() for line in read_text(name, SECONDS).splitlines()]
        base = posixpath.dirname(path)
        entries = [line for line in lines if line and not line.startswith("#")]
        if is_remote(name) and any(not is_remote(line) or line.startswith(("file:", "local:")) for line in entries):
            raise UserError(f"{shown(name)} names local files. A remote list may name URLs alone.")
        joined = [line if is_remote(line) or line.startswith("/") else posixpath.join(base, line) for line in entries]
        return [place for line in joined for place in _places_of_line(line)]
    if not is_remote(name) and Path(name).is_dir():
        return _folder(Path(name))
    try:
        # A file may be called like a pattern.
        names = [path] if not is_remote(path) and Path(path).exists() else expand([path])
    except UserError as error:
        raise UserError(f"{shown(name)} {error}. Correct it.") from None
    if is_remote(name):
        return [_url(place, mark + query) for place in names]
    return [place for each in names for place in _globbed(each)]


def _places_of_line(line: str) -> list[str]:
    # What is in a list may come from anyone: no references to the environment, no folders, no patterns.
    if line.startswith("pipe:"):
        raise UserError("commands (pipe:) cannot be adopted. Give the shards' paths or URLs.")
    return [line] if is_remote(line) else _globbed(line)


def _url(place: str, query: str) -> str:
    if any(character in place for character in "*["):
        raise UserError(f"{shown(place)}: servers are not searched. Name shards as {{000..099}}, or in a list (.txt).")
    if place.endswith("/"):
        raise UserError(
            f"{shown(place)} is a folder on a server. Name its shards as {{000..099}}, or in a list (.txt)."
        )
    return place + query


def _globbed(name: str) -> list[str]:
    if Path(name).exists():
        return _folder(Path(name)) if Path(name).is_dir() else [name]
    found = sorted(glob(name, recursive=True))
    if not found:
        raise UserError(f"no file {name}. Correct the path or pattern of the shards.")
    return [place for each in found for place in (_folder(Path(each)) if os.path.isdir(each) else [each])]


def _folder(path: Path) -> list[str]:
    """All tars in a folder and those below it, by name."""
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(folder, n) for n in files if not n.startswith(".") and n.endswith((".tar", *_COMPRESSED))
        ]
    if not found:
        raise UserError(f"{path} holds no shards (.tar). For a folder of images: fdtrain pack images.")
    return sorted(found)


def _by_split(places: Sequence[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for place in places:
        splits.setdefault(_split(place), []).append(place)
    if len(splits) == 1 or set(splits) == {"", "train"}:
        return {"train": list(places)}
    if "" not in splits and "train" in splits:
        return {split: splits[split] for split in ("train", "valid", "test") if split in splits}
    examples = ", ".join(excerpt(shown(shards[0])) for shards in splits.values())
    raise UserError(
        f"which shards are to train on ({examples}, ...)? Some are named like splits. Name the shards to train on, and "
        "the others with --test."
    )


def _split(place: str) -> str:
    """The split that the name of a shard, or else of its folder, tells; '': none."""
    path = place.partition("?")[0] if is_remote(place) else place
    parts = path.split("/")
    for name in (parts[-1], *parts[-2:-1]):
        words = set(re.split("[^a-z]+", name.lower()))
        found = {SPLIT_NAMES[word] for word in words & set(SPLIT_NAMES)}
        if len(found) > 1:
            raise UserError(f"{excerpt(shown(place))}: which split is it of? Name the held-out shards with --test.")
        if found:
            return found.pop()
    return ""


def local_folder(place: str) -> Path:
    """The folder of a shard on this machine.

    Raises:
        UserError: it is elsewhere.
    """
    if is_remote(place):
        raise UserError(f"{shown(place)} is remote. Give a folder for dataset.json with --output.")
    return Path(place).parent
