"""``dataset.json``: what a folder of shards holds (docs/data.md)."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fdtrain.errors import UserError
from fdtrain.strict_yaml import brief

FILE = "dataset.json"
VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Model):
    """One tar file."""

    # Both become file names, and a dataset.json may be a stranger's.
    file: str = Field(pattern=r"^[^/\\]+$")
    images: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DatasetDescription(_Model):
    """A packed data set: every split's shards, and what its images are.

    ``levels`` is the number of values a pixel takes (256 for 8-bit images): bits/dim are bits per
    ``levels``-valued pixel.
    """

    version: int
    name: str
    source: str
    size: int = Field(ge=1, description="height and width in pixels")
    channels: int = Field(ge=1, le=4)
    levels: int = Field(ge=2, le=256)
    classes: list[str]
    encoding: str
    splits: dict[str, list[Shard]]

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
        UserError: it is not one of ours.
    """
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.get("version") != VERSION:
            raise UserError(f"{where}: version {content.get('version')}, this fdtrain reads {VERSION}. Pack it again.")
        return DatasetDescription.model_validate(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}). Pack the data set again.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {place}: {first['msg']}. Pack the data set again.") from error


def read_description(folder: str | Path) -> DatasetDescription:
    """Read and check ``folder/dataset.json``.

    Raises:
        UserError: the folder or the file is missing or not one of ours.
    """
    folder = Path(folder)
    file = folder / FILE
    try:
        if not folder.is_dir():
            raise UserError(f"data.path: no folder {folder}. Pack a data set into it with tools/pack.py.")
        if not file.is_file():
            raise UserError(f"data.path: {folder} holds no {FILE}. Pack a data set into it with tools/pack.py.")
        text = file.read_text(errors="replace")
    except OSError as error:
        raise UserError(
            f"data.path: cannot read {brief(str(file))} ({error.strerror}). Check the path, and that you may read it."
        ) from error
    return parse_description(text, str(file))


def write_description(folder: Path, description: DatasetDescription) -> None:
    """Write ``dataset.json`` last of all, in one rename: a folder that has it is complete."""
    aside = folder / f".{FILE}"
    aside.write_text(json.dumps(description.model_dump(), indent=1) + "\n")
    os.replace(aside, folder / FILE)


def fingerprint(shards: Iterable[Shard]) -> str:
    """SHA-256 over names, counts and checksums of shards in their order, which with the seed fix the samples' order."""
    lines = [f"{shard.file} {shard.images} {shard.sha256}\n" for shard in shards]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_split(folder: str | Path, description: DatasetDescription, split: str) -> None:
    """See that every shard of a split lies in ``folder`` in full length.

    Raises:
        UserError: one is missing, cut short or grown.
    """
    for shard in description.splits[split]:
        check_length(Path(folder) / shard.file, shard)


def check_length(path: Path, shard: Shard) -> None:
    """See that a shard lies at ``path`` in full length.

    Raises:
        UserError: it is missing, cut short or grown.
    """
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is listed in {FILE} but missing. Restore it or pack again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    if found != shard.bytes:
        raise UserError(
            f"{path} has {found} bytes, {FILE} says {shard.bytes}: cut short or changed. Restore it or pack again."
        )
