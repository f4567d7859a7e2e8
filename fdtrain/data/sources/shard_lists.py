"""The places of existing shards, from paths, globs, brace patterns, lists, folders and URLs."""

import os
import re
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path

from fdtrain.data.braces import expand
from fdtrain.data.dataset import split_query
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.location import LIST, listed, with_credentials
from fdtrain.data.sources.source import SPLIT_NAMES
from fdtrain.errors import UserError, excerpt

SECONDS = 60.0
"""How long to try to reach a remote list."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def shard_lists(train: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    """The places of the shards of every split, in order.

    Without ``test``, folders and names with the word train or test (val, valid, validation, dev) are splits. Raises
    UserError: nothing is found, a place is named twice, or only some of the names tell a split."""
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
    name = with_credentials(name)
    path, query = split_query(name)
    if name.startswith("pipe:"):
        places = [name]
    elif path.endswith(LIST):
        places = listed(name, SECONDS)
    elif not is_remote(path) and Path(path).exists():
        # A file may be called like a pattern.
        places = [path]
    else:
        places = [place + query for place in expand(name, [path])]
    return [shard for place in places for shard in _shards(place)]


def _shards(place: str) -> list[str]:
    """The shards of a place: of a folder and those below it all tars, by name; of a pattern those that match it."""
    if place.startswith("pipe:"):
        raise UserError("commands (pipe:) cannot be adopted. Give the shards' paths or URLs.")
    if is_remote(place):
        path = split_query(place)[0]
        if path.endswith("/") or any(character in path for character in "*["):
            raise UserError(
                f"{shown(place)}: servers are not searched. Name shards as {{000..099}}, or in a list (.txt)."
            )
        return [place]
    found = [place] if os.path.exists(place) else sorted(glob(place, recursive=True))
    if not found:
        raise UserError(f"no file {place}. Correct the path or pattern of the shards.")
    return [shard for each in found for shard in (_folder(each) if os.path.isdir(each) else [each])]


def _folder(path: str) -> list[str]:
    found = [tar for end in TARS for tar in glob(f"{escape(path)}/**/*{end}", recursive=True)]
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
