"""The shards of a folder that is being packed, as the parts of interruptible work (docs/packing.md).

The folder holds the request in ``packing.json``, and in ``.packing/`` the record of each shard that is finished.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fdtrain import lock
from fdtrain.data import shard_index
from fdtrain.data.dataset import DatasetDescription
from fdtrain.data.shard_table import Shard
from fdtrain.errors import UserError
from fdtrain.partial import PartialStore


class PackRequest(BaseModel):
    """The arguments of a pack (``source`` is its identity), and the number of images of each part of each split.

    ``bad_images`` is whether some cannot be packed: then this request is finished only if they are replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: DatasetDescription
    shard_images: int
    source: str
    images: dict[str, list[int]] = {}
    bad_images: bool = False


def _compared(request: PackRequest) -> dict[str, Any]:
    """What defines the shards."""
    left_out = {"images": True, "bad_images": True, "description": {"preparation"}}
    return request.model_dump(mode="json", exclude=left_out)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a data set, made if need be, against other processes. Raises UserError: another has it, or it
    cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder of shards ({error.strerror}). Choose another.") from error
    with lock.held(folder):
        yield


class ShardStore(PartialStore[Shard]):
    """The finished shards of the folder ``shards``. A record is written after its shard."""

    PART = re.compile(r"[^.].*\.tar\.json")
    # A shard whose record is lost in a crash of the machine is written again.
    DURABLE = False

    def __init__(self, folder: Path, request: PackRequest):
        arguments = _compared(request)
        super().__init__(folder / ".packing", arguments, folder / "packing.json")
        self.shards = folder

    def begun(self) -> PackRequest:
        """The request in the folder, with its results. Errors as of :meth:`stored_request`."""
        return PackRequest.model_validate(super().stored_request())

    def stored_request(self) -> dict[str, Any]:
        return _compared(self.begun())

    def read(self, name: str) -> Shard | None:
        """The record of a shard, if the shard exists in full length, and its index was not emptied by a crash."""
        try:
            shard = Shard.model_validate_json((self.folder / name).read_bytes())
            complete = (self.shards / shard.file).stat().st_size == shard.bytes
            index = shard_index.place(self.shards, shard.file)
            # Earlier versions wrote none.
            complete &= not index.exists() or index.stat().st_size > shard.images
        except (FileNotFoundError, ValidationError):
            return None
        return shard if complete and name == f"{shard.file}.json" else None

    def save(self, shard: Shard) -> None:
        """Write the record of a shard that is in its place."""
        self.commit(self.folder / f"{shard.file}.json", shard.model_dump_json().encode() + b"\n")

    def finished(self) -> list[str]:
        """The shards that have a record."""
        return [name.removesuffix(".json") for name in self.names()]

    def shards_of(self, files: Iterable[str]) -> Iterator[Shard]:
        """The shards of these files, each read when it is asked for. Raises UserError: one was damaged since
        :meth:`prepare`."""
        for file in files:
            shard = self.read(f"{file}.json")
            if shard is None:
                raise UserError(f"{self.shards / file} was damaged. Repeat the command to pack it again.")
            yield shard

    def unlink(self, file: str) -> None:
        """Remove a shard and its index."""
        (self.shards / file).unlink(missing_ok=True)
        shard_index.place(self.shards, file).unlink(missing_ok=True)

    def remove_part(self, name: str) -> None:
        self.unlink(name.removesuffix(".json"))
        super().remove_part(name)
