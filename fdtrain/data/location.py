"""Finds a packed data set by its ``data.path`` (docs/data.md).

data/cifar10                                 a folder with dataset.json
https://host/cifar10, s3://bucket/cifar10    the same, elsewhere
s3://bucket/cifar10/train-{000..099}.tar     some of its shards; dataset.json beside them
data/shards.txt                              a list, one shard (or pattern) a line; dataset.json beside it

The ``?...`` of a URL belongs to every file beneath it, and ``${NAME}`` stands for a variable of the environment.
"""

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fdtrain.credentials import MASK, expand_references
from fdtrain.data.braces import expand
from fdtrain.data.dataset import (
    FILE,
    DatasetDescription,
    check_length,
    join,
    parse_description,
    read_description,
    split_query,
)
from fdtrain.data.fetch import MAX_TEXT_BYTES, fetch, is_remote, read_text, shown
from fdtrain.data.host import made_once
from fdtrain.data.members import MemberReader
from fdtrain.data.shard_table import ShardTable
from fdtrain.data.shards import PlacedShards
from fdtrain.errors import UserError, excerpt

LIST = ".txt"
CHECKED = 10_000
"""The local shards of a split that are looked at before a run; each is when it is opened."""


@dataclass(frozen=True)
class PackedData:
    """A packed data set and where it is stored.

    Attributes:
        base: the folder or URL of dataset.json.
        places: the shards that a pattern or list names, by file name; None: all shards, beside dataset.json.
    """

    base: str
    description: DatasetDescription
    places: dict[str, str] | None

    def split(self, name: str, first_label: int = 0) -> PlacedShards:
        """The split's shards with images, their labels numbered from ``first_label`` on.

        A pattern or list selects among a split's shards. If it names none of them, all are where dataset.json says.
        Raises UserError: unknown or empty split."""
        if name not in self.description.splits:
            known = excerpt(", ".join(self.description.splits)) or "none"
            raise UserError(f"{shown(join(self.base, FILE))} has no split '{name}' (it has: {known}).")
        shards, places = self.description.splits[name], self.places or {}
        named = np.array([file in places for file in shards.files()] if places else [], bool)
        shards = shards.only((shards.images > 0) & (named if named.any() else True))
        if not len(shards):
            raise UserError(f"{shown(self.base)}: split '{name}' holds no images. Pack the data set again.")
        labels = range(first_label, first_label + len(self.description.classes))
        return PlacedShards(shards, self.base, places, labels, MemberReader(self.description))

    def check(self, splits: Iterable[str], process: int = 0, processes: int = 1) -> None:
        """Check that the local shards of these splits are there, of very many some, and that the folder has no others;
        of this the share of one process. Raises UserError: one is missing, cut short, grown or not listed."""
        for placed in map(self.split, splits):
            for i in range(0, len(placed), -(-len(placed) // CHECKED))[process::processes]:
                if not is_remote(placed[i].place):
                    check_length(Path(placed[i].place), placed[i].shard)
        shards = self.description.splits.values()
        # Whoever names each place may leave others in its folder.
        named = self.places is not None or all(len(of.places()) == len(of) for of in shards)
        if process > 0 or named or is_remote(self.base):
            return
        try:
            others = {name for name in os.listdir(self.base) if name.endswith(".tar") and name[0] != "."}
        except OSError as error:
            raise UserError(f"data.path: cannot read {self.base} ({error.strerror}). Check its permissions.") from error
        others.difference_update(*(of.files() for of in shards))
        if others:
            what = f"{min(others)}{f' and {len(others) - 1} more' if len(others) > 1 else ''}"
            raise UserError(f"{self.base} holds {what}, which {FILE} does not list. Move it away, or pack again.")


def locate(path: str | Path, allow_pipe: bool = False, seconds: float = 60.0) -> PackedData:
    """Find a data set and read its description, a remote one with tries for so many seconds.

    ``allow_pipe``: a list may name shards as ``pipe:COMMAND``, which is executed. Raises UserError: there is no
    description; a pattern or list names what it does not describe."""
    path = with_credentials(str(path))
    if path.startswith("pipe:"):
        raise UserError("data.path: put pipe: commands into a list file (.txt) beside a local dataset.json.")
    places = None
    place, query = split_query(path)
    if place.endswith(LIST):
        base = posixpath.dirname(place) + query
        places = listed(path, seconds)
    elif "{" in place:
        base = posixpath.dirname(place.partition("{")[0]) + query
        places = [name + query for name in expand(path, [place])]
    else:
        base = (place.rstrip("/") or "/") + query
    base = base or "."
    description = _description(base, seconds)
    shards = list(description.splits.values())
    if is_remote(base):
        _check_remote(base, [place for of_split in shards for place in of_split.places()])
    if not allow_pipe and any(place.startswith("pipe:") for place in places or []):
        raise UserError(f"{shown(path)} runs commands (pipe:). Set data.allow_pipe to true if you trust it.")
    return PackedData(base, description, None if places is None else _by_name(path, places, shards))


def _description(base: str, seconds: float) -> DatasetDescription:
    if not is_remote(base):
        return read_description(base)
    file = join(base, FILE)
    copy = made_once(file, lambda path: fetch(file, path, seconds, MAX_TEXT_BYTES))
    return parse_description(read_text(str(copy), 0), base, seconds)


def _check_remote(path: str, places: Iterable[str]) -> None:
    """A remote list or description must not make this machine read its own files."""
    admitted = ("pipe:", "http://", "https://", "s3://", "gs://", f"{path.partition('://')[0]}://")
    for place in places:
        if (is_remote(place) or place.startswith("/")) and not place.startswith(admitted):
            raise UserError(
                f"{shown(path)} names {excerpt(shown(place))}. A remote list may name shards beside it or in remote "
                "stores, no local files. Correct it, or copy it to this machine."
            )


def _by_name(path: str, places: Iterable[str], splits: Sequence[ShardTable]) -> dict[str, str]:
    """The places of shards by the names of their files. Their places in dataset.json name them too."""
    files = {file for shards in splits for file in shards.files()}
    listed = {shard.place: shard.file for shards in splits if shards.places() for shard in shards}
    by_name: dict[str, str] = {}
    for place in places:
        name = posixpath.basename(split_query(place)[0])
        name = listed.get(without_credentials(place), name)
        if name not in files:
            raise UserError(f"{shown(path)} names {excerpt(name)}, which {FILE} does not list. Correct one of the two.")
        if name in by_name:
            raise UserError(f"{shown(path)} names {name} twice. A sample would come twice an epoch: remove one.")
        by_name[name] = place
    if not by_name:
        raise UserError(f"{shown(path)} names no shard.")
    return by_name


def without_credentials(place: str) -> str:
    """A URL without user, password and query, under which ``dataset.json`` lists a shard. A path stays as it is."""
    if not is_remote(place) or place.startswith("pipe:"):
        return place
    scheme, mark, rest = split_query(place)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def with_credentials(path: str) -> str:
    """A path or URL with its references to the environment expanded. Raises UserError: it is empty, names a variable
    that does not exist, or its credentials were removed."""
    if not path.strip():
        raise UserError("data.path is empty. Give the folder or URL of a packed data set.")
    try:
        expanded = expand_references(path)
    except KeyError as error:
        raise UserError(f"{path} names ${{{error.args[0]}}}, which the environment does not have. Set it.") from None
    if is_remote(expanded) and MASK in expanded:
        raise UserError(
            f"data.path: {MASK} stands where the credentials of {expanded} were removed when it was stored. "
            "Give the path again, best with ${NAME} for a variable of the environment that holds them."
        )
    return expanded


def listed(path: str, seconds: float) -> list[str]:
    """The places that a list file names, one or a brace pattern a line, from its folder on. Raises UserError: it cannot
    be read, or is remote and names files of this machine."""
    place, query = split_query(path)
    base = posixpath.dirname(place) + query or "."
    lines = (line.strip() for line in read_text(path, seconds).splitlines())
    names = expand(path, [line for line in lines if line and not line.startswith("#")])
    places = [name if is_remote(name) or name.startswith("/") else join(base, name) for name in names]
    if is_remote(path):
        _check_remote(path, places)
    return places
