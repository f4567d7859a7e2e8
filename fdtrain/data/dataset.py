"""``dataset.json``, the description of a folder of shards (docs/data.md)."""

import hashlib
import json
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, FailFast, Field, ValidationError

from fdtrain.data import shard_table
from fdtrain.data.fetch import is_remote, read_text, shown
from fdtrain.data.shard_table import Model, Shard, ShardTable, TableParts
from fdtrain.errors import UserError, excerpt
from fdtrain.files import NAME, write_text

FILE = "dataset.json"
VERSION, VERSION_OF_PARTS = 1, 2
"""Of a description that lists all shards itself, and of one that names files of them."""


# Untrusted values end up in messages, folders and arrays.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Line = Annotated[str, Field(max_length=1000, pattern=_PRINTABLE)]
MAX_CLASSES = 1 << 20
MAX_KEYS = 1000


Suffix = Annotated[str, Field(max_length=200, pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$")]
"""What follows the first dot of a member's name, in lower case."""


_IMAGE = r"^(.*\.)?(npy|png|jpg|jpeg|webp)$"


class SampleMembers(Model):
    """Which members of a sample are its image and its label, where the packer did not name them.

    Attributes:
        image: the suffixes of images; a sample has one of them. The part behind the last dot is the format.
        label: the suffix of labels, which are names of classes; None: there are none.
        field: of a label in JSON; None: ``label``.
    """

    image: list[Annotated[Suffix, Field(pattern=_IMAGE)]] = Field(min_length=1, max_length=100)
    label: Suffix | None = None
    field: Line | None = None


SplitName = Annotated[str, Field(max_length=200, pattern=NAME)]

if TYPE_CHECKING:
    Shards = ShardTable
else:
    Shards = Annotated[list[Shard], FailFast(), AfterValidator(ShardTable.of)]


class DatasetDescription(Model):
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
    # Of earlier versions.
    preparation: dict[str, Any] | None = None
    splits: dict[SplitName, Shards]

    def images(self, split: str) -> int:
        return int(self.splits[split].images.sum())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    @property
    def dims(self) -> int:
        return self.channels * self.size * self.size


def parse_description(text: str, base: str, seconds: float = 0.0) -> DatasetDescription:
    """What the text of a ``dataset.json`` in the folder or at the URL ``base`` describes. Remote files that it names
    are tried for so many seconds. Raises UserError: it is not valid."""
    where = shown(join(base, FILE))
    parts: dict[str, TableParts] = {}
    try:
        content = json.loads(text, object_pairs_hook=_object)
        if isinstance(content, dict):
            if content.get("version") not in (VERSION, VERSION_OF_PARTS):
                version = excerpt(repr(content.get("version")), 40)
                raise UserError(f"{where}: version {version}, this fdtrain reads 1 and 2. Pack it again.")
            if content["version"] == VERSION_OF_PARTS and isinstance(splits := content.get("splits"), dict):
                parts = {split: TableParts.model_validate(of) for split, of in splits.items() if isinstance(of, dict)}
                content["splits"] = splits | {split: [] for split in parts}
        description = DatasetDescription.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {excerpt(place)}: {excerpt(first['msg'])}. Pack the data set again.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where} is not JSON ({excerpt(error)}). Pack the data set again.") from None
    tables = {s: shard_table.read(of.parts, lambda f: join(base, f), seconds, where) for s, of in parts.items()}
    if tables:
        description = description.model_copy(update={"splits": description.splits | tables})
    if again := shard_table.repeated(description.splits.values()):
        raise UserError(f"{where} lists {excerpt(again)} twice. Its samples would come twice: remove one.")
    return description


def join(base: str, name: str) -> str:
    """The place of a file in a folder, or beneath a URL, whose part from ``?`` on belongs to every file."""
    place, query = split_query(base)
    return f"{place.rstrip('/')}/{name}{query}" if base else name


def split_query(place: str) -> tuple[str, str]:
    """A place, and the part of a URL from ``?`` on."""
    if not is_remote(place) or place.startswith("pipe:"):
        return place, ""
    path, mark, query = place.partition("?")
    return path, mark + query


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
    """Read and check ``folder/dataset.json``. Raises UserError: it is missing, cannot be read, or is not valid."""
    try:
        text = read_text(str(Path(folder, FILE)), 0)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise UserError(
                f"data.path: no folder {folder} with a {FILE}. Pack a data set into it with fdtrain pack."
            ) from None
        raise
    return parse_description(text, str(folder))


def write_description(
    folder: Path, description: DatasetDescription, splits: Mapping[str, Iterable[Shard]] | None = None
) -> None:
    """Write ``dataset.json``, last of all and atomically: a folder that has it is complete. ``splits`` are the shards
    where the description does not have them."""
    content = description.model_dump(exclude_none=True, exclude={"splits"})
    shards = description.splits if splits is None else splits
    content["splits"] = {split: shard_table.write(folder, split, of) for split, of in shards.items()}
    in_parts = any(isinstance(written, dict) for written in content["splits"].values())
    content["version"] = VERSION_OF_PARTS if in_parts else VERSION
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def fingerprint(shards: ShardTable, members: SampleMembers | None = None) -> str:
    """SHA-256 over names, counts and checksums of shards in their order, which with the seed fix the samples' order,
    and over the members that are read."""
    digest = hashlib.sha256()
    for file, images, sha256 in shards.identities():
        digest.update(f"{file} {images} {sha256}\n".encode())
    digest.update(members.model_dump_json().encode() if members else b"")
    return digest.hexdigest()


def check_length(path: Path, shard: Shard) -> None:
    """Raises UserError unless a shard exists at ``path`` in full length."""
    what = f"{path} is listed in {FILE} but"
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{what} missing or out of reach ({error.strerror}). Restore it or pack again.") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size != shard.bytes:
        raise UserError(f"{what} no file of {shard.bytes} bytes: cut short or changed. Restore it or pack again.")
