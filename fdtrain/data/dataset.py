"""``dataset.json``, the description of a folder of shards (docs/data.md)."""

import hashlib
import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator

from fdtrain.credentials import masked
from fdtrain.data.text import read_text
from fdtrain.errors import UserError, excerpt
from fdtrain.files import NAME, write_text

FILE = "dataset.json"
VERSION = 1


# Untrusted values end up in messages, folders and arrays.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Line = Annotated[str, Field(max_length=1000, pattern=_PRINTABLE)]
MAX_CLASSES = 1 << 20
MAX_KEYS = 1000


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Suffix = Annotated[str, Field(max_length=200, pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$")]
"""What follows the first dot of a member's name, in lower case."""


_IMAGE = r"^(.*\.)?(npy|png|jpg|jpeg|webp)$"


class SampleMembers(_Model):
    """Which members of a sample are its image and its label, where the packer did not name them.

    Attributes:
        image: the suffixes of images; a sample has one of them. The part behind the last dot is the format.
        label: the suffix of labels, which are names of classes; None: there are none.
        field: of a label in JSON; None: ``label``.
    """

    image: list[Annotated[Suffix, Field(pattern=_IMAGE)]] = Field(min_length=1, max_length=100)
    label: Suffix | None = None
    field: Line | None = None


class Shard(_Model):
    """One tar file. ``place``: its path from the data set's folder, or its URL, where it is not ``file`` there."""

    # Both become file names.
    file: str = Field(pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$", max_length=200)
    images: int = Field(ge=0, le=1 << 40)
    bytes: int = Field(ge=0, le=1 << 50)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    place: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f]+$", max_length=5000)

    @field_validator("place")
    @classmethod
    def _check_place(cls, place: str | None) -> str | None:
        if place is not None and (place.startswith("pipe:") or masked(place) != place):
            raise ValueError("commands, and URLs with credentials or a query, belong into a list of shards")
        return place


class Preparation(_Model):
    """What a packer did to photographs of any size.

    Args:
        method: how an image was cut and resized.
        photographs: their number in each split.
        crops: the images made of each: one, or more by an earlier version.
        pixels: width x height of the smallest, the median and the largest, by area.
        turned: how many were turned upright, as their EXIF orientation says.
        converted: how many were converted, by "FROM to TO".
        enlarged: how many have a side that is smaller than the images'.
    """

    method: Line
    photographs: dict[Line, int]
    crops: int = Field(default=1, ge=1)
    pixels: list[Line] = Field(max_length=3)
    turned: int = Field(ge=0)
    converted: dict[Line, int]
    enlarged: int = Field(ge=0)


SplitName = Annotated[str, Field(max_length=200, pattern=NAME)]


class DatasetDescription(_Model):
    """A packed data set: the shards of every split, and the properties of its images.

    ``levels`` is the number of values a pixel takes (256 for 8-bit images): bits/dim are bits per
    ``levels``-valued pixel.
    """

    version: int
    name: Line
    source: str = Field(max_length=100_000)
    size: int = Field(ge=1, le=1 << 13, description="height and width in pixels")
    channels: int = Field(ge=1, le=4)
    levels: int = Field(ge=2, le=256)
    classes: Annotated[list[Line], FailFast()] = Field(max_length=MAX_CLASSES)
    encoding: Line
    members: SampleMembers | None = None
    preparation: Preparation | None = None
    splits: dict[SplitName, Annotated[list[Shard], FailFast()]]

    def images(self, split: str) -> int:
        return sum(shard.images for shard in self.splits[split])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    @property
    def dims(self) -> int:
        return self.channels * self.size * self.size


def parse_description(text: str, where: str) -> DatasetDescription:
    """Check the contents of a ``dataset.json``; ``where`` names it in messages.

    Raises:
        UserError: it is not a valid description.
    """
    try:
        content = json.loads(text, object_pairs_hook=_object)
        if isinstance(content, dict) and content.get("version") != VERSION:
            version = excerpt(repr(content.get("version")), 40)
            raise UserError(f"{where}: version {version}, this fdtrain reads {VERSION}. Pack it again.")
        description = DatasetDescription.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {excerpt(place)}: {excerpt(first['msg'])}. Pack the data set again.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where} is not JSON ({excerpt(error)}). Pack the data set again.") from None
    seen: set[str] = set()
    for shard in (shard for shards in description.splits.values() for shard in shards):
        if shard.file in seen:
            raise UserError(f"{where} lists {shard.file} twice. Its samples would come twice: remove one.")
        seen.add(shard.file)
    return description


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of bounded size, without repeated keys, of which readers would use one or the other."""
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object of {len(pairs)} keys")
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"key '{key}' comes twice")
        content[key] = value
    return content


def read_description(folder: str | Path) -> DatasetDescription:
    """Read and check ``folder/dataset.json``.

    Raises:
        UserError: the folder or the file is missing, or the file is not valid.
    """
    folder = Path(folder)
    file = folder / FILE
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise FileNotFoundError
        described = file.exists()
    except FileNotFoundError:
        raise UserError(f"data.path: no folder {folder}. Pack a data set into it with fdtrain pack.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or excerpt(error)
        raise UserError(f"data.path: cannot read {excerpt(folder)} ({reason}). Check its permissions.") from error
    if not described:
        raise UserError(f"data.path: {folder} holds no {FILE}. Pack a data set into it with fdtrain pack.")
    return parse_description(read_text(str(file), 0), str(file))


def write_description(folder: Path, description: DatasetDescription) -> None:
    """Write ``dataset.json``, last of all and atomically: a folder that has it is complete."""
    write_text(folder / FILE, json.dumps(description.model_dump(exclude_none=True), indent=1) + "\n")


def fingerprint(shards: Iterable[Shard], members: SampleMembers | None = None) -> str:
    """SHA-256 over names, counts and checksums of shards in their order, which with the seed fix the samples' order,
    and over the members that are read."""
    lines = [f"{shard.file} {shard.images} {shard.sha256}\n" for shard in shards]
    lines += [members.model_dump_json()] if members else []
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_split(folder: str | Path, description: DatasetDescription, split: str) -> None:
    """Check that every shard of a split exists in ``folder`` in full length.

    Raises:
        UserError: one is missing, cut short or grown.
    """
    for shard in description.splits[split]:
        check_length(Path(folder) / shard.file, shard)


def check_length(path: Path, shard: Shard) -> None:
    """Check that a shard exists at ``path`` in full length.

    Raises:
        UserError: it is missing, cut short or grown.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is listed in {FILE} but missing. Restore it or pack again.") from None
    except OSError as error:
        raise UserError(f"{path} is listed in {FILE} but cannot be read ({error.strerror}). Restore it.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file. Restore it or pack again.")
    if status.st_size != shard.bytes:
        raise UserError(
            f"{path} has {status.st_size} bytes, {FILE} says {shard.bytes}: cut short or changed. "
            "Restore it or pack again."
        )
