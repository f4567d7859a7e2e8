"""Existing WebDataset shards: their samples, and a source that packs them anew.

What is a sample, webdataset decides: the consecutive members of one key, the name up to the first dot of the file's
name. Its headers are read by our own scan, which is bounded and refuses what is damaged or ambiguous.
Its image is the only member in a format that is read, or the one asked for; its label a ``cls``, the ``label`` of a
``json``, or the member asked for. Other members are ignored: captions, metadata, masks of other formats.
"""

import io
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fdtrain.data.decode import IMAGES, LABELS, class_name, npy_header
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.members import json_field, longest_name
from fdtrain.data.sources.archive import MAX_READ, advice
from fdtrain.data.sources.picture import Fit, decode, exactly, upright_shape
from fdtrain.data.sources.preparation import method
from fdtrain.data.sources.source import BadSample, Sample, Source, hold_out_fewer, numbered
from fdtrain.data.tar import BadTar, compressed, members
from fdtrain.data.workers import run
from fdtrain.errors import UserError, excerpt

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
_FRACTION = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)


class Wanted(NamedTuple):
    """The suffixes of image (None: the only one) and label (None: there is none). ``field``: of a label in JSON.

    ``labels_ignored``: labels are not packed, whatever there is.
    """

    image: str | None
    label: str | None
    field: str = "label"
    labels_ignored: bool = False


class FoundSample(NamedTuple):
    """Where the image of a sample lies in its shard, and the name of its class (None: no label)."""

    where: str
    suffix: str
    offset: int
    size: int
    label: str | None


@contextmanager
def mapped(path: Path, name: str) -> Iterator[mmap.mmap]:
    """A tar file for reading; ``name`` stands for it in messages.

    Raises:
        UserError: no file, or compressed; here or within, no tar.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{name} is no regular file. Correct the path.")
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{name} is empty (0 bytes). Fetch or make it again, or leave it out.")
            if compressed(path):
                raise UserError(f"{name} is compressed: no sample in it can be read in place. Decompress it first.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        what = advice([name]) or " Fetch or make it again."
        raise UserError(f"{name} cannot be read as a tar file ({reason}).{what}") from error


def samples(data: mmap.mmap, wanted: Wanted, name: str) -> Iterator[FoundSample | BadSample]:
    """Every sample of a shard, or what is wrong with it.

    Raises:
        BadTar: it is no tar file, or a damaged one.
    """
    seen: set[str] = set()
    for key, found, repeated in _keys(data):
        where = f"{name}, sample '{excerpt(key)}'"
        try:
            if key in seen:
                raise BadSample(f"{where} comes twice, or its members do not follow each other. Make the shard anew.")
            if repeated is not None:
                raise BadSample(f"{where} has two members '{excerpt(repeated)}'. Make the shard anew, a key a sample.")
            yield _sample(data, found, wanted, where)
        except BadSample as error:
            yield error
        seen.add(key)


def _keys(data: mmap.mmap) -> Iterator[tuple[str, dict[str, tuple[int, int]], str | None]]:
    """Each key with offset and size of its members by suffix, and a suffix that it has twice.

    webdataset groups the members. It is given their places instead of their bytes, of which most are never read.
    """
    # Loaded here: it imports torch.
    from webdataset.tariterators import base_plus_ext, group_by_keys

    repeated: list[str] = []

    def note(error: Exception) -> bool:
        repeated.append(base_plus_ext(str(error.args[0]).partition(": ")[0])[1] or "")
        return True

    for found in group_by_keys(_files(data), lcase=False, handler=note):
        key = found.pop("__key__")
        del found["__url__"]
        yield key, found, repeated[0] if repeated else None
        repeated.clear()


def _files(data: mmap.mmap) -> Iterator[dict[str, object]]:
    """Members as webdataset's reader has them, except hidden ones. Formats are known in lower case.

    Raises:
        BadTar: of :func:`members`; a name that webdataset does not read, or has for itself.
    """
    for name, offset, size in members(data):
        first = name.rfind(b"/") + 1
        dot = name.find(b".", first)
        if dot <= first:
            continue
        if b"\n" in name or name.startswith(b"__", dot + 1):
            raise BadTar(f"a member '{excerpt(name)}', whose name is no sample's")
        text = (name[:dot] + name[dot:].lower()).decode("utf-8", "surrogateescape")
        yield {"fname": text, "data": (offset, size), "__url__": ""}


def _sample(data: mmap.mmap, found: dict[str, tuple[int, int]], wanted: Wanted, where: str) -> FoundSample:
    pictures = images_of(found, wanted.image)
    if not pictures:
        raise BadSample(f"{where} has no image ({wanted.image or ', '.join(IMAGES)}). Remove its members, or add it.")
    if len(pictures) > 1:
        raise BadSample(f"{where} has several images ({', '.join(pictures)}). Choose one with --image.{_dotted(found)}")
    label = None
    if wanted.label is not None:
        label = _label(data, found, json_field(wanted.label, wanted.field), wanted.label, where)
    elif "cls" in found and not wanted.labels_ignored:
        raise BadSample(f"{where} has a label (cls), the first samples have none. Ask for labels with --labels.")
    return FoundSample(where, pictures[0], *found[pictures[0]], label)


def images_of(suffixes: Iterable[str], image: str | None) -> list[str]:
    """The suffixes that may be images."""
    if image is not None:
        return [suffix for suffix in suffixes if suffix == image]
    return [suffix for suffix in suffixes if suffix.rpartition(".")[2] in IMAGES]


def _dotted(found: Iterable[str]) -> str:
    """A hint, where image and label are of one name with dots: it ends at its first dot, as webdataset has it."""
    parts = [suffix.rpartition(".") for suffix in found]
    images, labels = ({stem for stem, _, last in parts if last in kinds} for kinds in (IMAGES, LABELS))
    if not any(images & labels):
        return ""
    return " (A name ends at its first dot. If others are meant: fdtrain pack images SHARD.tar.)"


def _label(data: mmap.mmap, found: dict[str, tuple[int, int]], field: str | None, suffix: str, where: str) -> str:
    name, place = None, found.get(suffix)
    try:
        if place is not None:
            offset, size = place
            if size > longest_name(field):
                raise ValueError(f"{size} bytes")
            name = class_name(data[offset : offset + size], field)
    except ValueError as error:
        raise BadSample(f"{where}: '{suffix}' holds no label ({excerpt(error)}). Correct it.") from error
    if name is None:
        missing = suffix if place is None else f"field '{field}' of {suffix}"
        raise BadSample(
            f"{where} has no label ({missing}), others have one. Label all images, or none (--labels '')."
            f"{_dotted(found)}"
        )
    if _FRACTION.fullmatch(name):
        raise BadSample(f"{where}: '{suffix}' holds {excerpt(name, 40)}, no whole number. Correct it.")
    if not name.isprintable() or len(name) > 1000:
        raise BadSample(f"{where}: '{excerpt(name, 40)}' is no name of a class. Correct it.")
    return name


def first_sample(paths: Iterable[tuple[Path, str]], image: str | None, labels: str | None) -> tuple[Wanted, Fit]:
    """What samples consist of, and the size and channels of images, by the first image that can be opened.

    ``labels`` is ``SUFFIX``, ``SUFFIX:FIELD`` for JSON, or '' for none; None: as the first sample has them.

    Raises:
        UserError: there is no image.
    """
    image = image and image.lower()
    first: BadSample | None = None
    for path, name in paths:
        with mapped(path, name) as data:
            for key, found, _ in _keys(data):
                try:
                    sample = _sample(
                        data, found, Wanted(image, None, labels_ignored=True), f"{name}, sample '{excerpt(key)}'"
                    )
                    size, channels = upright_shape(_picture(image_bytes(data, sample), sample), sample.where)
                except BadSample as error:
                    first = first or error
                    continue
                return _wanted(data, found, image, labels), exactly(min(size), channels)
    raise first or UserError("the shards hold no images.")


def _wanted(data: mmap.mmap, found: dict[str, tuple[int, int]], image: str | None, labels: str | None) -> Wanted:
    if labels is not None:
        suffix, colon, field = labels.partition(":")
        if colon and json_field(suffix.lower(), field) is None:
            raise UserError(f"--labels {labels}: only JSON has fields, as in json:label. Correct it.")
        return Wanted(image, suffix.lower() or None, field or "label", labels_ignored=not suffix)
    named = [suffix for suffix in found if suffix.rpartition(".")[2] == "cls"]
    if len(named) > 1:
        raise UserError(f"samples have several labels ({', '.join(named)}). Choose one with --labels.")
    if not named and "json" in found:
        offset, size = found["json"]
        try:
            named = ["json"] if size <= longest_name("") and class_name(data[offset : offset + size], "label") else []
        except ValueError:
            named = []
    return Wanted(image, named[0] if named else None)


def image_bytes(data: mmap.mmap, sample: FoundSample) -> bytes:
    """Raises BadSample if they are more than any image has."""
    if sample.size > MAX_READ:
        raise BadSample(f"{sample.where}: an image of {sample.size} bytes. Remove it.")
    return data[sample.offset : sample.offset + sample.size]


def pixels(content: bytes, sample: FoundSample, fit: Fit) -> np.ndarray:
    """``(size, size, channels)`` uint8, as the packer packs any image.

    Raises:
        BadSample: as :func:`decode`.
    """
    return decode(_picture(content, sample), sample.where, fit)


def _picture(content: bytes, sample: FoundSample) -> bytes | np.ndarray:
    """The file of a picture, or an array ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` of uint8."""
    if not sample.suffix.endswith("npy"):
        return content
    where, stream = sample.where, io.BytesIO(content)
    try:
        shape, fortran, dtype = npy_header(stream)
    except Exception as error:  # numpy's parser raises what it runs into.
        raise BadSample(f"{where} is not an npy array ({excerpt(error)}). Remove it.") from error
    if dtype != np.uint8 or fortran or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        what = f"{excerpt(dtype)} of shape {excerpt(shape)}"
        raise BadSample(f"{where} is an array of {what}, not uint8 of height x width x 1 or 3. Convert it first.")
    values = np.frombuffer(content, np.uint8, offset=stream.tell())
    if values.size != np.prod(shape, dtype=object) or not values.size:
        raise BadSample(f"{where} is an array of {values.size} bytes for shape {excerpt(shape)}. Make it again.")
    return values.reshape(shape)


class ShardLabels(NamedTuple):
    """The number of samples of a shard, and the names of their classes."""

    samples: int
    labels: set[str]


def shard_labels(path: Path, wanted: Wanted) -> tuple[Path, ShardLabels]:
    with mapped(path, str(path)) as data:
        found = list(samples(data, wanted, str(path)))
    return path, ShardLabels(len(found), {s.label for s in found if isinstance(s, FoundSample) and s.label is not None})


def class_list(labels: dict[str, list[set[str]]]) -> list[str]:
    """The classes by number, from the labels of each shard of each split. Numbers are themselves, names are sorted.

    Raises:
        UserError: too many; negative numbers; names that the train images lack.
    """
    train: set[str] = set().union(*labels["train"])
    every = train.union(*(names for shards in labels.values() for names in shards))
    if every and all(map(_NUMBER.fullmatch, every)):
        return numbered(max(map(int, every)), "the shards")
    if any(re.fullmatch("-[0-9]+", name) for name in every):
        raise UserError("the shards have negative labels. Correct them, or do without labels (--labels '').")
    if every != train:
        lacking = excerpt(", ".join(sorted(every - train)))
        raise UserError(f"the held-out images have classes that the train images lack: {lacking}.")
    numbered(len(every), "the shards")
    return sorted(every)


def held_out(counts: dict[str, int], holdout: int) -> dict[str, list[str]]:
    """Whole shards of at least ``holdout`` images together, the last of a fixed permutation, are held out.

    Raises:
        UserError: too few shards.
    """
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


@dataclass(frozen=True)
class ShardPart:
    """One shard to pack anew."""

    path: Path
    images: int
    wanted: Wanted
    classes: tuple[str, ...]
    fit: Fit

    def count(self) -> int:
        return self.images

    def open(self) -> Callable[[int], Sample]:
        with mapped(self.path, str(self.path)) as data:
            found = list(samples(data, self.wanted, str(self.path)))
        number = {name: index for index, name in enumerate(self.classes)}

        def read(index: int) -> Sample:
            sample = found[index]
            if isinstance(sample, BadSample):
                raise sample
            with self.path.open("rb") as file:
                file.seek(sample.offset)
                content = file.read(min(sample.size, MAX_READ + 1))
            if len(content) > MAX_READ:
                raise BadSample(f"{sample.where}: an image of {sample.size} bytes. Remove it.")
            return pixels(content, sample, self.fit), -1 if sample.label is None else number[sample.label]

        return read

    def identity(self) -> str:
        return repr((self.path.name, self.path.stat().st_size, self.images, self.wanted, self.classes, self.fit))


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
    """Shards whose images are cropped to the largest centre square and resized to ``size`` pixels (Lanczos).

    Raises:
        UserError: one is remote, compressed or no tar; labels that are none.
    """
    places = [place for shards in splits.values() for place in shards]
    for place in places:
        if is_remote(place):
            raise UserError(f"{shown(place)} is remote, and would be fetched to be packed anew. Copy it here first.")
    wanted, like = first_sample(((Path(place), place) for place in places), image, labels)
    fit = Fit(size, channels or like.channels, picture=None)
    results = run(shard_labels, [(Path(place), wanted) for place in places], workers)
    found = dict(tqdm(results, "listing", len(places), unit=" shards"))
    if holdout:
        splits = held_out({place: found[Path(place)].samples for place in splits["train"]}, holdout)
    classes = class_list({split: [found[Path(p)].labels for p in shards] for split, shards in splits.items()})
    return Source(
        name=name,
        source=f"{describe(splits)}, {method(size)}",
        size=size,
        channels=fit.channels,
        classes=classes,
        splits={
            split: [ShardPart(Path(p), found[Path(p)].samples, wanted, tuple(classes), fit) for p in shards]
            for split, shards in splits.items()
        },
    )


def describe(splits: Mapping[str, Sequence[str]]) -> str:
    """The origin of a data set, without folders and credentials."""
    parts = []
    for split, places in splits.items():
        names = [place.partition("?")[0].rpartition("/")[2] for place in (places[0], places[-1])]
        parts.append(f"{split}: {' ... '.join(dict.fromkeys(names))}")
    return "WebDataset shards, " + "; ".join(parts)
