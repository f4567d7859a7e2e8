"""Describes existing WebDataset shards where they are: a ``dataset.json``, and no copy (docs/packing.md).

Every image is decoded twice, as the packer would and as training will: a shard is adopted only if both agree, to the
byte. The indices of the shards that are checked are the parts of interruptible work, in ``.adopting/``.
"""

import fcntl
import hashlib
import os
import posixpath
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fdtrain import files
from fdtrain.credentials import expand_references
from fdtrain.data import shard_index
from fdtrain.data.dataset import (
    FILE,
    DatasetDescription,
    SampleMembers,
    Shard,
    read_description,
    write_description,
)
from fdtrain.data.decode import BadSample, Broken, ImageDecoder
from fdtrain.data.fetch import fetch, is_remote, shown
from fdtrain.data.location import LIST as LISTED
from fdtrain.data.location import PackedData, locate, without_credentials
from fdtrain.data.members import NO_LABEL
from fdtrain.data.shard_index import NamedLabels
from fdtrain.data.shard_store import alone
from fdtrain.data.sources.picture import Fit, decode, exactly
from fdtrain.data.sources.shard_lists import shard_lists
from fdtrain.data.sources.shards import (
    FoundSample,
    Wanted,
    class_list,
    describe_places,
    first_sample,
    found_samples,
    held_out,
    mapped,
)
from fdtrain.data.workers import run, stopped
from fdtrain.data.writer import MANY, Problem, describe, describing, refuse
from fdtrain.errors import UserError
from fdtrain.partial import PartialStore

WORK = ".adopting"
LIST = "shards.txt"
WORTH_BYTES = 1 << 25
"""Of shards that are worth a process."""
FETCH_SECONDS, MAX_BYTES = 600.0, 1 << 40
"""For one remote shard."""


class IndexStore(PartialStore[dict[str, Any]]):
    """The indices of the checked shards, by their numbers, each after a line that tells the file that was checked. What
    is read is the index's header."""

    PART = re.compile(r"\d+\.idx")
    # An index that is lost in a crash of the machine is made again.
    DURABLE = False

    def __init__(self, folder: Path, places: list[str], request: dict[str, Any]):
        self.places = places
        # Without their credentials.
        request = request | {"places": [shown(place) for place in places]}
        super().__init__(folder / WORK, request, folder / WORK / "request.json")

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.idx"

    def read(self, name: str) -> dict[str, Any] | None:
        version, _, index = (self.folder / name).read_bytes().partition(b"\n")
        try:
            header, _ = shard_index.parts(index)
        except ValueError:
            return None
        return header if version == _version(self.places[int(name.partition(".")[0])]) else None

    def index(self, number: int) -> bytes:
        return self.path(number).read_bytes().partition(b"\n")[2]


def adopt(
    splits: dict[str, list[str]],
    folder: Path,
    name: str,
    holdout: int = 0,
    channels: int | None = None,
    levels: int = 256,
    image: str | None = None,
    labels: str | None = None,
    workers: int = 1,
    bar: bool = False,
) -> DatasetDescription:
    """Check shards and write ``folder/dataset.json``, or go on with what an earlier call has checked.

    Args:
        splits: the places of each split's shards.
        holdout: hold out whole shards of so many images together.
        levels: the number of values of a pixel.
        image, labels: the members of a sample, as in :func:`first_sample`.

    Raises:
        UserError: images cannot be used, or not without packing them anew; they are counted and the first are named.
    """
    places = [place for shards in splits.values() for place in shards]
    with alone(folder):
        if (folder / FILE).exists():
            raise UserError(f"{folder} holds a data set already. Remove its {FILE}, or choose another --output.")
        wanted, fit = first_sample(_opened(places, folder / WORK), image, labels)
        fit = exactly(fit.size, channels or fit.channels)
        store = IndexStore(folder, places, {"wanted": repr(wanted), "fit": repr(fit), "levels": levels})
        store.prepare()
        done, problems = set(store.names()), list[Problem]()
        tasks = [
            (store, number, place, wanted, fit, levels)
            for number, place in enumerate(places)
            if store.path(number).name not in done
        ]
        with tqdm(total=len(places), initial=len(done), desc="checking", unit=" shards", disable=not bar) as shown_bar:
            for found in run(check_shard, tasks, workers):
                problems += found
                shown_bar.update()
                if len(problems) >= MANY:
                    break
        refuse(problems, "the shards")
        headers = dict(zip(places, store.load(), strict=True))
        if holdout:
            splits = held_out({place: headers[place]["samples"] for place in splits["train"]}, holdout)
        for split, shards in splits.items():
            if not any(headers[place]["samples"] for place in shards):
                raise UserError(f"split '{split}' holds no images. Correct the names of its shards.")
        suffixes = sorted({suffix for header in headers.values() for suffix in header["images"]})
        with describing():
            description = describe(
                splits,
                name=name,
                source=describe_places(splits),
                size=fit.size,
                channels=fit.channels,
                levels=levels,
                classes=class_list({s: [set(headers[p]["named"]["classes"]) for p in of] for s, of in splits.items()}),
                encoding="+".join(sorted({suffix.rpartition(".")[2] for suffix in suffixes})),
                members=SampleMembers(image=suffixes, label=wanted.label or None, field=wanted.field),
            )
            described = _shards(splits, headers, folder)
        if any(without_credentials(place) != place for place in places):
            _write_list(folder / LIST, places)
        numbers = {place: number for number, place in enumerate(places)}
        for split, shards in splits.items():
            for place, shard in zip(shards, described[split], strict=True):
                shard_index.write(shard_index.place(folder, shard.file), store.index(numbers[place]))
        os.sync()
        write_description(folder, description, described)
        store.remove()
    return read_description(folder)


def is_shards(path: str) -> bool:
    """Whether a path names shards of this machine that no ``dataset.json`` beside them describes."""
    try:
        path = expand_references(path)
    except KeyError:
        return False
    if is_remote(path) or not path.endswith((".tar", LISTED)):
        return False
    beside = posixpath.dirname(path.partition("{")[0])
    return any(c in path for c in "*?[") or not os.path.exists(posixpath.join(beside, FILE))


def scanned(path: str) -> PackedData:
    """Shards as they are, of which :func:`is_shards` is true. They are checked once: the result is kept in the user's
    cache, and holds until one of them changes. Of several processes one checks, and the others wait for it. Raises
    UserError: as :func:`adopt`."""
    splits = shard_lists([path], [])
    places = [os.path.realpath(place) for shards in splits.values() for place in shards if not is_remote(place)]
    if len(places) < sum(map(len, splits.values())):
        raise UserError(f"data.path: {path} names remote shards without a {FILE}. Make it: fdtrain pack adopt {path}.")
    known = repr(({split: len(shards) for split, shards in splits.items()}, [(p, _version(p)) for p in places]))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fdtrain" / "shards"
    folder = cache / hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (cache / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / FILE).exists():
                name = Path(places[0]).parent.name or "shards"
                # Another process is worth its start from some tens of megabytes on.
                worth = 1 + sum(Path(place).stat().st_size for place in places) // WORTH_BYTES
                adopt(splits, folder, name, workers=min(len(os.sched_getaffinity(0)), worth), bar=True)
    except OSError as error:
        raise UserError(
            f"{cache} cannot be written ({error.strerror}). Set XDG_CACHE_HOME to another folder."
        ) from error
    return locate(folder)


def _opened(places: list[str], work: Path) -> Iterator[tuple[Path, str]]:
    """Shard after shard, fetched if need be, with its name for messages."""
    for place in places:
        with _local(place, work) as path:
            yield path, shown(place)


@contextmanager
def _local(place: str, work: Path) -> Iterator[Path]:
    """The file of a shard: itself, or fetched for as long as the context lasts."""
    if not is_remote(place):
        yield Path(place)
        return
    path = work / f"{os.getpid()}.tar"
    try:
        work.mkdir(exist_ok=True)
        fetch(place, path, FETCH_SECONDS, MAX_BYTES)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _version(place: str) -> bytes:
    """By which a local file is known to be unchanged."""
    if is_remote(place):
        return b""
    try:
        status = os.stat(place)
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror}). Restore it, or its permissions.") from error
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def check_shard(store: IndexStore, number: int, place: str, wanted: Wanted, fit: Fit, levels: int) -> list[Problem]:
    """Check every sample of a shard, and store its index if all are sound, unless this process is to stop. Returns what
    is wrong with the others."""
    version, problems, sound, name = _version(place), list[Problem](), list[FoundSample](), shown(place)
    decoder, out = ImageDecoder(fit.size, fit.channels), np.empty(fit.size * fit.size * fit.channels, np.uint8)
    with _local(place, store.folder) as path, mapped(path, name) as data, path.open("rb") as file:
        for sample in found_samples(data, wanted, name):
            if stopped() or len(problems) >= MANY:
                return problems
            try:
                if isinstance(sample, BadSample):
                    raise sample
                packed = decode(data[sample.bytes], sample.where, fit)
                try:
                    decoder.read(file.fileno(), sample.suffix.rpartition(".")[2], sample.offset, sample.size, out)
                    if not np.array_equal(out, packed.reshape(-1)):
                        raise Broken("turned by EXIF, or stored in other colours")
                except Broken as error:
                    raise BadSample(f"{sample.where}: {error}. Pack all anew with --size {fit.size}.") from error
                if (level := out.max()) >= levels:
                    raise BadSample(f"{sample.where} has level {level}, not 0 to {levels - 1}. Correct --levels.")
                sound.append(sample)
            except BadSample as error:
                problems.append((name, len(sound) + len(problems), str(error)))
        if not problems:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            shard = Shard(file="shard", images=len(sound), bytes=path.stat().st_size, sha256=digest)
            store.commit(store.path(number), version + b"\n" + _index(shard, sound, wanted))
    return problems


def _index(shard: Shard, samples: list[FoundSample], wanted: Wanted) -> bytes:
    suffixes = {suffix: i for i, suffix in enumerate(sorted({sample.suffix for sample in samples}))}
    labels = {label: i for i, label in enumerate(sorted({s.label for s in samples if s.label is not None}))}
    named = NamedLabels.model_construct(suffix=wanted.label or None, field=wanted.field, classes=list(labels))
    rows = array("q")
    for sample in samples:
        number = NO_LABEL if sample.label is None else labels[sample.label]
        rows.extend((suffixes[sample.suffix], number, sample.offset, sample.size))
    return shard_index.content(shard, list(suffixes), rows, named)


def _shards(splits: dict[str, list[str]], headers: dict[str, dict[str, Any]], folder: Path) -> dict[str, list[Shard]]:
    names = {place: posixpath.basename(without_credentials(place)) for shards in splits.values() for place in shards}
    unique = len(set(names.values())) == len(names) and not any(name.startswith(".") for name in names.values())
    described: dict[str, list[Shard]] = {split: [] for split in splits}
    by_content: dict[str, str] = {}
    for split, shards in splits.items():
        for number, place in enumerate(shards):
            header = headers[place]
            if (other := by_content.setdefault(header["sha256"], place)) != place:
                raise UserError(f"{shown(place)} and {shown(other)} are the same, byte for byte. Name one of them.")
            described[split].append(
                Shard(
                    file=names[place] if unique else f"{split}-{number:06d}.tar",
                    images=header["samples"],
                    bytes=header["bytes"],
                    sha256=header["sha256"],
                    place=_place(place, folder),
                )
            )
    return described


def _place(place: str, folder: Path) -> str:
    """From the data set's folder where it is below it, so that both can be moved together."""
    if is_remote(place):
        return without_credentials(place)
    path, base = os.path.realpath(place), os.path.realpath(folder)
    return os.path.relpath(path, base) if path.startswith(f"{base}/") else path


def _write_list(path: Path, places: list[str]) -> None:
    """The URLs with their credentials, for their owner alone."""

    def write(temporary: Path) -> None:
        temporary.touch(mode=0o600)
        temporary.write_text("".join(f"{p if is_remote(p) else os.path.realpath(p)}\n" for p in places), "utf-8")

    files.write_atomically(path, write)
