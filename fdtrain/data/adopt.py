"""Describes existing WebDataset shards where they are: a ``dataset.json``, and no copy (docs/packing.md).

Every image is decoded twice, as the packer would and as training will: a shard is adopted only if both agree, to the
byte. The shards that are checked are the parts of interruptible work, in ``.adopting/``.
"""

import fcntl
import hashlib
import os
import posixpath
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from fdtrain import files, lock
from fdtrain.credentials import expand_references
from fdtrain.data import shard_index
from fdtrain.data.dataset import (
    FILE,
    VERSION,
    DatasetDescription,
    SampleMembers,
    Shard,
    read_description,
    write_description,
)
from fdtrain.data.decode import Broken, ImageDecoder
from fdtrain.data.fetch import fetch, is_remote, shown
from fdtrain.data.location import LIST as LISTED
from fdtrain.data.location import PackedData, locate, without_credentials
from fdtrain.data.members import NO_LABEL, json_field
from fdtrain.data.shard_index import NamedLabels
from fdtrain.data.sources.picture import Fit, WrongSize, exactly
from fdtrain.data.sources.shard_lists import shard_lists
from fdtrain.data.sources.shards import (
    FoundSample,
    Wanted,
    class_list,
    describe,
    first_sample,
    held_out,
    image_bytes,
    mapped,
    pixels,
    samples,
)
from fdtrain.data.sources.source import BadSample
from fdtrain.data.workers import run, stopped
from fdtrain.errors import UserError, excerpt
from fdtrain.partial import PartialStore

WORK = ".adopting"
LIST = "shards.txt"
REPORTED = 20
"""Bad images that are reported one by one."""
MANY = 1000
"""Bad images of a shard after which it is abandoned."""
WORTH_BYTES = 1 << 25
"""Of shards that are worth a process."""
FETCH_SECONDS, MAX_BYTES = 600.0, 1 << 40
"""For one remote shard."""


class ShardScan(BaseModel):
    """What a shard holds. The problems are by kind, with their number; the first are in ``texts``.

    ``version`` is that of the file that was checked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: tuple[int, int] | None
    images: int
    bytes: int
    sha256: str
    suffixes: list[str]
    labels: list[str]
    bad: int
    wrong_size: int
    changed: int
    texts: dict[str, list[str]]


class ScanStore(PartialStore[ShardScan]):
    """The checked shards, by their numbers: a line with what was found, and the shard's index."""

    PART = re.compile(r"\d+\.scan")
    # A shard whose record is lost in a crash of the machine is checked again.
    DURABLE = False

    def __init__(self, folder: Path, places: list[str], request: dict[str, Any]):
        self.places = places
        # Without their credentials.
        request = request | {"places": [shown(place) for place in places]}
        super().__init__(folder / WORK, request, folder / WORK / "request.json")

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.scan"

    def read(self, name: str) -> ShardScan | None:
        try:
            with (self.folder / name).open("rb") as file:
                scan = ShardScan.model_validate_json(file.readline())
        except (OSError, ValidationError):
            return None
        return scan if scan.version == _version(self.places[int(name.partition(".")[0])]) else None

    def index(self, number: int) -> bytes:
        return self.path(number).read_bytes().partition(b"\n")[2]

    def refused(self, path: Path, reason: object) -> str:
        return f"{path} cannot be written ({reason}). Make room, or choose another --output; the same command goes on."


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
    with _alone(folder):
        wanted, fit = first_sample(_opened(places, folder), image, labels)
        fit = exactly(fit.size, channels or fit.channels)
        store = ScanStore(folder, places, {"wanted": repr(wanted), "fit": repr(fit), "levels": levels})
        store.prepare()
        done = set(store.names())
        tasks = [
            (store, number, place, wanted, fit, levels)
            for number, place in enumerate(places)
            if store.path(number).name not in done
        ]
        with tqdm(total=len(places), initial=len(done), desc="checking", unit=" shards", disable=not bar) as shown_bar:
            for _ in run(scan_shard, tasks, workers):
                shown_bar.update()
        numbers = {place: number for number, place in enumerate(places)}
        scans = dict(zip(places, store.load(), strict=True))
        _check(list(scans.values()), fit)
        if holdout:
            splits = held_out({place: scans[place].images for place in splits["train"]}, holdout)
        for split, shards in splits.items():
            if not sum(scans[place].images for place in shards):
                raise UserError(f"split '{split}' holds no images. Correct the names of its shards.")
        description, described = _description(splits, scans, folder, name, wanted, fit, levels)
        if any(without_credentials(place) != place for place in places):
            _write_list(folder / LIST, places)
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
    cache, and holds until one of them changes. Of several processes one checks, and the others wait for it.

    Raises:
        UserError: as :func:`adopt`.
    """
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, against other processes.

    Raises:
        UserError: it holds a data set already, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.held(folder):
            if (folder / FILE).exists():
                raise UserError(f"{folder} holds a data set already. Remove its {FILE}, or choose another --output.")
            (folder / WORK).mkdir(exist_ok=True)
            try:
                yield
            finally:
                # Unless it holds results.
                with suppress(OSError):
                    (folder / WORK).rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}). Choose another with --output.") from error


def _opened(places: list[str], folder: Path) -> Iterator[tuple[Path, str]]:
    """Shard after shard, fetched if need be, with its name for messages."""
    for place in places:
        with _local(place, folder) as path:
            yield path, shown(place)


@contextmanager
def _local(place: str, folder: Path) -> Iterator[Path]:
    """The file of a shard: itself, or fetched for as long as the context lasts."""
    if not is_remote(place):
        yield Path(place)
        return
    path = folder / WORK / f"{os.getpid()}.tar"
    try:
        fetch(place, path, FETCH_SECONDS, MAX_BYTES)
        yield path
    finally:
        path.unlink(missing_ok=True)


def scan_shard(store: ScanStore, number: int, place: str, wanted: Wanted, fit: Fit, levels: int) -> None:
    """Check every sample of a shard, and store what was found, unless this process is to stop."""
    version = _version(place)
    with _local(place, store.folder.parent) as path:
        found = _scan(path, shown(place), version, wanted, fit, levels)
    if found is not None:
        scan, index = found
        store.commit(store.path(number), scan.model_dump_json().encode() + b"\n" + index)


def _version(place: str) -> tuple[int, int] | None:
    """By which a local file is known to be unchanged."""
    if is_remote(place):
        return None
    try:
        status = os.stat(place)
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror}). Restore it, or its permissions.") from error
    return status.st_size, status.st_mtime_ns


def _scan(
    path: Path, name: str, version: tuple[int, int] | None, wanted: Wanted, fit: Fit, levels: int
) -> tuple[ShardScan, bytes] | None:
    """What a shard holds, and its index. None: interrupted."""
    found: list[FoundSample] = []
    count = 0
    problems: dict[str, list[str]] = {"bad": [], "wrong_size": [], "changed": []}
    check = Check(fit, levels)
    with mapped(path, name) as data, path.open("rb") as file:
        for sample in samples(data, wanted, name):
            if stopped():
                return None
            count += 1
            try:
                if isinstance(sample, BadSample):
                    raise sample
                check.image(sample, pixels(image_bytes(data, sample), sample, fit), file.fileno())
                found.append(sample)
            except WrongSize as error:
                problems["wrong_size"].append(str(error).partition(", expected")[0])
            except BadSample as error:
                problems["bad"].append(str(error))
                if len(problems["bad"]) >= MANY:
                    break
            except Broken as error:
                problems["changed"].append(str(error))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    suffixes = {suffix: i for i, suffix in enumerate(sorted({sample.suffix for sample in found}))}
    labels = {label: i for i, label in enumerate(sorted({s.label for s in found if s.label is not None}))}
    scan = ShardScan(
        version=version,
        images=count,
        bytes=path.stat().st_size,
        sha256=digest,
        suffixes=list(suffixes),
        labels=list(labels),
        **{kind: len(texts) for kind, texts in problems.items()},
        texts={kind: texts[:REPORTED] for kind, texts in problems.items()},
    )
    named = NamedLabels.model_construct(
        suffix=wanted.label, field=json_field(wanted.label or "", wanted.field), classes=list(labels)
    )
    rows = array("q")
    for sample in found:
        number = NO_LABEL if sample.label is None else labels[sample.label]
        rows.extend((suffixes[sample.suffix], number, sample.offset, sample.size))
    shard = Shard(file="shard", images=count, bytes=scan.bytes, sha256=digest)
    return scan, shard_index.content(shard, list(suffixes), rows, named)


class Check:
    """Whether images are read as they would be packed."""

    def __init__(self, fit: Fit, levels: int):
        self.levels = levels
        self.decoder = ImageDecoder(fit.size, fit.channels)
        self.out = np.empty(fit.size * fit.size * fit.channels, np.uint8)

    def image(self, sample: FoundSample, packed: np.ndarray, file: int) -> None:
        """Raises Broken if it would be read otherwise, BadSample on a level out of range."""
        try:
            self.decoder.read(file, sample.suffix.rpartition(".")[2], sample.offset, sample.size, self.out)
        except Broken as error:
            raise Broken(f"{sample.where}: {error}") from error
        if not np.array_equal(self.out, packed.reshape(-1)):
            raise Broken(f"{sample.where}: turned by EXIF, or stored in other colours")
        if (level := self.out.max()) >= self.levels:
            raise BadSample(f"{sample.where} has level {level}, not 0 to {self.levels - 1}. Correct --levels.")


def _check(scans: list[ShardScan], fit: Fit) -> None:
    """Raises UserError if an image cannot be used as it is."""
    images = sum(scan.images for scan in scans)
    lines = []
    bad, wrong, changed = (sum(getattr(s, kind) for s in scans) for kind in ("bad", "wrong_size", "changed"))
    first = {kind: [text for s in scans for text in s.texts[kind]][:REPORTED] for kind in scans[0].texts}
    if bad == 1:
        lines += first["bad"]
    elif bad:
        lines += [f"{bad} of {images} images cannot be used. The first {len(first['bad'])}:", *first["bad"]]
    if wrong:
        lines.append(
            f"{wrong} of {images} images need a crop or a resize to be {fit.size}x{fit.size} as the first one (such as "
            f"{first['wrong_size'][0]}), and adopting changes no image. Pack them anew: fdtrain pack adopt ... "
            "--size PIXELS --output FOLDER."
        )
    if changed:
        lines.append(
            f"{changed} of {images} images would not be read as the packer packs them (such as {first['changed'][0]}). "
            f"Pack them anew: fdtrain pack adopt ... --size {fit.size} --output FOLDER."
        )
    if lines:
        raise UserError(lines)


def _description(
    splits: dict[str, list[str]],
    scans: dict[str, ShardScan],
    folder: Path,
    name: str,
    wanted: Wanted,
    fit: Fit,
    levels: int,
) -> tuple[DatasetDescription, dict[str, list[Shard]]]:
    """The description without the shards, and the shards of each split."""
    suffixes = sorted({suffix for scan in scans.values() for suffix in scan.suffixes})
    field = json_field(wanted.label or "", wanted.field)
    try:
        description = DatasetDescription(
            version=VERSION,
            name=name,
            source=describe(splits),
            size=fit.size,
            channels=fit.channels,
            levels=levels,
            classes=class_list({split: [set(scans[p].labels) for p in shards] for split, shards in splits.items()}),
            encoding="+".join(sorted({suffix.rpartition(".")[2] for suffix in suffixes})),
            members=SampleMembers(image=suffixes, label=wanted.label, field=field),
            splits={},
        )
        return description, _shards(splits, scans, folder)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{excerpt(repr(first['input']))} cannot stand in {FILE} as {excerpt(place)} ({excerpt(first['msg'])}). "
            "Rename or correct it."
        ) from None


def _shards(splits: dict[str, list[str]], scans: dict[str, ShardScan], folder: Path) -> dict[str, list[Shard]]:
    names = [posixpath.basename(without_credentials(place)) for shards in splits.values() for place in shards]
    unique = len(set(names)) == len(names) and not any(name.startswith(".") for name in names)
    described: dict[str, list[Shard]] = {}
    by_content: dict[str, str] = {}
    for split, shards in splits.items():
        described[split] = []
        for number, place in enumerate(shards):
            scan = scans[place]
            if (other := by_content.setdefault(scan.sha256, place)) != place:
                raise UserError(f"{shown(place)} and {shown(other)} are the same, byte for byte. Name one of them.")
            named = posixpath.basename(without_credentials(place)) if unique else f"{split}-{number:06d}.tar"
            described[split].append(
                Shard(
                    file=named,
                    images=scan.images,
                    bytes=scan.bytes,
                    sha256=scan.sha256,
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
