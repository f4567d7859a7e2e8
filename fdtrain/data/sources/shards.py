"""Existing WebDataset shards: their samples, and a source that packs them anew.

The image of a sample is the only member in a format that is read, or the one asked for; its label a ``cls``, the
``label`` of a ``json``, or the member asked for. Other members are ignored: captions, metadata, masks.
"""

import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fdtrain.data.decode import IMAGES, BadSample
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.members import class_name, json_field, samples
from fdtrain.data.sources.archive import MAX_READ, advice
from fdtrain.data.sources.picture import Fit, exactly, method, upright_shape
from fdtrain.data.sources.source import Part, Sample, Source, class_names, hold_out_fewer
from fdtrain.data.tar import compressed
from fdtrain.data.workers import run
from fdtrain.errors import UserError, excerpt

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
_FRACTION = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)


class Wanted(NamedTuple):
    """The suffixes of image (None: the only one) and label (None: there is none; '': whatever there is, it is not
    packed), and the field of a label in JSON (None: it is a text)."""

    image: str | None
    label: str | None
    field: str | None = None


class FoundSample(NamedTuple):
    """Where the image of a sample lies in its shard, and the name of its class (None: no label)."""

    where: str
    suffix: str
    offset: int
    size: int
    label: str | None

    @property
    def bytes(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@contextmanager
def mapped(path: Path, name: str) -> Iterator[mmap.mmap]:
    """A tar file for reading; ``name`` stands for it in messages. Raises UserError: no file, or compressed; here or
    within, no tar."""
    try:
        # A FIFO would be waited for.
        if not path.is_file():
            raise UserError(f"{name} is no regular file. Correct the path.")
        if compressed(path):
            raise UserError(f"{name} is compressed: no sample in it can be read in place. Decompress it first.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        what = advice([name]) or " Fetch or make it again."
        raise UserError(f"{name} cannot be read as a tar file ({reason}).{what}") from error


def found_samples(data: mmap.mmap, wanted: Wanted, name: str) -> Iterator[FoundSample | BadSample]:
    """Every sample of a shard, or what is wrong with it. Raises BadTar: it is no tar file, or a damaged one."""
    seen: set[str] = set()
    for sample in samples(data):
        where = f"{name}, sample '{excerpt(sample.key)}'"
        try:
            if sample.key in seen:
                raise BadSample(f"{where} comes twice, or its members do not follow each other. Make the shard anew.")
            if sample.repeated is not None:
                twice = excerpt(sample.repeated)
                raise BadSample(f"{where} has two members '{twice}'. Make the shard anew, a key a sample.")
            yield _sample(data, sample.members, wanted, where)
        except BadSample as error:
            yield error
        seen.add(sample.key)


def _sample(data: mmap.mmap, found: dict[str, tuple[int, int]], wanted: Wanted, where: str) -> FoundSample:
    pictures = [s for s in found if s == wanted.image or (not wanted.image and s.rpartition(".")[2] in IMAGES)]
    if not pictures:
        raise BadSample(f"{where} has no image ({wanted.image or ', '.join(IMAGES)}). Remove its members, or add it.")
    if len(pictures) > 1:
        raise BadSample(f"{where} has several images ({', '.join(pictures)}). Choose one with --image.")
    if found[pictures[0]][1] > MAX_READ:
        raise BadSample(f"{where}: an image of {found[pictures[0]][1]} bytes. Remove it.")
    label = None
    if wanted.label:
        label = _label(data, found, wanted.field, wanted.label, where)
    elif "cls" in found and wanted.label is None:
        raise BadSample(f"{where} has a label (cls), the first samples have none. Ask for labels with --labels.")
    return FoundSample(where, pictures[0], *found[pictures[0]], label)


def _label(data: mmap.mmap, found: dict[str, tuple[int, int]], field: str | None, suffix: str, where: str) -> str:
    name, place = None, found.get(suffix)
    try:
        if place is not None:
            name = class_name(data, place, field)
    except ValueError as error:
        raise BadSample(f"{where}: '{suffix}' holds no label ({excerpt(error)}). Correct it.") from error
    if name is None:
        missing = suffix if place is None else f"field '{field}' of {suffix}"
        raise BadSample(f"{where} has no label ({missing}), others have one. Label all images, or none (--labels '').")
    if _FRACTION.fullmatch(name):
        raise BadSample(f"{where}: '{suffix}' holds {excerpt(name, 40)}, no whole number. Correct it.")
    if not name.isprintable() or len(name) > 1000:
        raise BadSample(f"{where}: '{excerpt(name, 40)}' is no name of a class. Correct it.")
    return name


def first_sample(paths: Iterable[tuple[Path, str]], image: str | None, labels: str | None) -> tuple[Wanted, Fit]:
    """What samples consist of, and the size and channels of images, by the first image that can be opened.

    ``labels`` is ``SUFFIX``, ``SUFFIX:FIELD`` for JSON, or '' for none; None: as the first sample has them. Raises
    UserError: there is no image."""
    image = image and image.lower()
    first: BadSample | None = None
    for path, name in paths:
        with mapped(path, name) as data:
            for key, found, _ in samples(data):
                try:
                    where = f"{name}, sample '{excerpt(key)}'"
                    sample = _sample(data, found, Wanted(image, ""), where)
                    size, channels = upright_shape(data[sample.bytes], sample.where)
                except BadSample as error:
                    first = first or error
                    continue
                return _wanted(data, found, image, labels), exactly(min(size), channels)
    raise first or UserError("the shards hold no images.")


def _wanted(data: mmap.mmap, found: dict[str, tuple[int, int]], image: str | None, labels: str | None) -> Wanted:
    if labels is not None:
        suffix, colon, field = labels.partition(":")
        in_json = json_field(suffix.lower(), field or "label")
        if colon and in_json is None:
            raise UserError(f"--labels {labels}: only JSON has fields, as in json:label. Correct it.")
        return Wanted(image, suffix.lower(), in_json)
    named = [suffix for suffix in found if suffix.rpartition(".")[2] == "cls"]
    if len(named) > 1:
        raise UserError(f"samples have several labels ({', '.join(named)}). Choose one with --labels.")
    if not named and "json" in found:
        with suppress(ValueError):
            if class_name(data, found["json"], "label") is not None:
                return Wanted(image, "json", "label")
    return Wanted(image, named[0] if named else None)


def shard_labels(path: Path, wanted: Wanted) -> tuple[Path, int, set[str]]:
    """The number of samples of a shard, and the names of their classes."""
    with mapped(path, str(path)) as data:
        found = list(found_samples(data, wanted, str(path)))
    return path, len(found), {s.label for s in found if isinstance(s, FoundSample) and s.label is not None}


def class_list(labels: dict[str, list[set[str]]]) -> list[str]:
    """The classes, from the labels of each shard of each split: texts, which may be numbers. Raises UserError: as
    :func:`class_names`; negative numbers."""
    names = {split: set[str]().union(*shards) for split, shards in labels.items()}
    every = set().union(*names.values())
    if all(map(_NUMBER.fullmatch, every)):
        return class_names({split: set(map(int, of_split)) for split, of_split in names.items()}, "the shards")
    if any(re.fullmatch("-[0-9]+", name) for name in every):
        raise UserError("the shards have negative labels. Correct them, or do without labels (--labels '').")
    return class_names(names, "the shards")


def held_out(counts: dict[str, int], holdout: int) -> dict[str, list[str]]:
    """Whole shards of at least ``holdout`` images together, the last of a fixed permutation, are held out. Raises
    UserError: too few shards."""
    # randomness imports torch, which takes seconds that every worker process would repeat.
    from fdtrain.randomness import Purpose, stream

    places = list(counts)
    chosen: set[str] = set()
    for index in reversed(stream(0, Purpose.SPLIT).permutation(len(places)).tolist()):
        if sum(counts[place] for place in chosen) >= holdout:
            break
        chosen.add(places[index])
    if len(chosen) == len(places):
        raise UserError(
            f"{len(places)} shards of {sum(counts.values())} images: --holdout {holdout} takes whole shards, and would "
            f"leave none. {hold_out_fewer(sum(counts.values()))} Or name held-out shards with --test."
        )
    return {"train": [p for p in places if p not in chosen], "test": [p for p in places if p in chosen]}


def _part(path: Path, images: int, wanted: Wanted, classes: Sequence[str]) -> Part:
    """One shard to pack anew."""
    identity = path.name, path.stat().st_size, images, wanted, tuple(classes)
    return Part(identity, images, partial(_open, path, wanted, classes))


def _open(path: Path, wanted: Wanted, classes: Sequence[str]) -> Callable[[int], Sample]:
    with mapped(path, str(path)) as data:
        found = list(found_samples(data, wanted, str(path)))
    number, file = {name: index for index, name in enumerate(classes)}, path.open("rb")

    def read(index: int) -> Sample:
        sample = found[index]
        if isinstance(sample, BadSample):
            raise sample
        content = os.pread(file.fileno(), sample.size, sample.offset)
        return content, -1 if sample.label is None else number[sample.label], sample.where

    return read


def shard_source(
    splits: dict[str, list[str]],
    holdout: int,
    name: str,
    size: int,
    channels: int | None,
    image: str | None,
    labels: str | None,
    workers: int,
) -> Source:
    """Shards whose images are cropped to the largest centre square and resized to ``size`` pixels (Lanczos). Raises
    UserError: one is remote, compressed or no tar; labels that are none."""
    places = [place for shards in splits.values() for place in shards]
    for place in places:
        if is_remote(place):
            raise UserError(f"{shown(place)} is remote, and would be fetched to be packed anew. Copy it here first.")
    wanted, like = first_sample(((Path(place), place) for place in places), image, labels)
    results = run(shard_labels, [(Path(place), wanted) for place in places], workers)
    counts, names = dict[Path, int](), dict[Path, set[str]]()
    for path, count, found in tqdm(results, "listing", len(places), unit=" shards"):
        counts[path], names[path] = count, found
    if holdout:
        splits = held_out({place: counts[Path(place)] for place in splits["train"]}, holdout)
    classes = class_list({split: [names[Path(p)] for p in shards] for split, shards in splits.items()})
    return Source(
        name=name,
        source=f"{describe_places(splits)}, {method(size)}",
        fit=Fit(size, channels or like.channels, picture=None),
        classes=classes,
        splits={
            split: [_part(Path(p), counts[Path(p)], wanted, classes) for p in shards]
            for split, shards in splits.items()
        },
    )


def describe_places(splits: Mapping[str, Sequence[str]]) -> str:
    """The origin of a data set, without folders and credentials."""
    parts = []
    for split, places in splits.items():
        names = [place.partition("?")[0].rpartition("/")[2] for place in (places[0], places[-1])]
        parts.append(f"{split}: {' ... '.join(dict.fromkeys(names))}")
    return "WebDataset shards, " + "; ".join(parts)
