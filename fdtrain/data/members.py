"""The samples of a shard: which members belong together, and which of them are the image and the label (docs/data.md).

webdataset groups the members: consecutive ones of one key, the name up to the first dot of the file's name. It is given
their places instead of their bytes, of which most are never read. The headers are read by our own scan, which is
bounded and refuses what is damaged or ambiguous.
"""

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from fdtrain.data.dataset import DatasetDescription
from fdtrain.data.decode import IMAGES
from fdtrain.data.tar import FILE, BadTar, scan
from fdtrain.errors import excerpt

NO_LABEL, BAD_LABEL = -1, -2
LABELS = ("cls", "json")
LONGEST_LABEL = {"cls": 20, "json": 1 << 20}
"""In bytes."""
LONGEST_NAME = 4000
"""Bytes of a label that is the name of a class."""
_META = re.compile(rb"__[^/]*__(/|$)")
"""What webdataset's reader skips too."""


class Sample(NamedTuple):
    """The members of one key: offset and size of each by its suffix, in lower case, and a suffix that comes twice."""

    key: str
    members: dict[str, tuple[int, int]]
    repeated: str | None


def samples(data: mmap.mmap) -> Iterator[Sample]:
    """Every sample of a tar. Hidden files are passed over, and webdataset's metadata (``__meta__/...``). Raises BadTar:
    of :func:`scan`; a name that webdataset does not read, or has for itself."""
    # Loaded here: it imports torch, which the packer's processes have no use for.
    from webdataset.tariterators import group_by_keys

    repeated: list[str] = []

    def note(error: Exception) -> bool:
        if isinstance(error, BadTar):
            raise BadTar(error.args[0])
        repeated.append(_key(str(error.args[0]).partition(": ")[0])[1] or "")
        return True

    files = (
        {"fname": entry.name.decode("utf-8", "surrogateescape"), "data": (entry.offset, entry.size), "__url__": ""}
        for entry in scan(data)
        if entry.kind == FILE and not _META.match(entry.name)
    )
    for found in group_by_keys(files, _key, lcase=False, handler=note):
        key = found.pop("__key__")
        del found["__url__"]
        yield Sample(key, found, repeated[0] if repeated else None)
        repeated.clear()


def _key(name: str) -> tuple[str | None, str | None]:
    """As webdataset has it: the name up to the first dot of the file's name, and what follows, in lower case."""
    dot = name.find(".", name.rfind("/") + 1)
    if dot < 1 or name[dot - 1] == "/":
        return None, None
    suffix = name[dot + 1 :].lower()
    if suffix.startswith("__") or "\n" in name:
        raise BadTar(f"a member '{excerpt(name)}', whose name is no sample's")
    return name[:dot], suffix


class MemberReader:
    """Which members of a data set's samples are read.

    Attributes:
        images: for each suffix of images, the format among ``IMAGES``.
        members: as ``dataset.json`` names them; None: it does not, and they are as the packer names them.
        numbers: of classes by their names, where members are named.
    """

    def __init__(self, description: DatasetDescription):
        self.members = description.members
        suffixes = self.members.image if self.members else IMAGES
        self.images = {suffix: IMAGES.index(suffix.rpartition(".")[2]) for suffix in suffixes}
        self.numbers, self.field, self._labels = dict[str, int](), None, LABELS
        if self.members:
            suffix = self.members.label or ""
            self._labels = (suffix,) if suffix else ()
            self.field = json_field(suffix, self.members.field or "label")
            self.numbers = {name: number for number, name in enumerate(description.classes)}

    def scan(self, data: mmap.mmap) -> "array[int]":
        """``kind, label, offset, size`` of every sample, one after another, as an index has them. Raises BadTar: no
        tar; a key with two images or a member twice, as where two samples of one key meet."""
        found = array("q")
        for key, places, repeated in samples(data):
            images = [suffix for suffix in places if suffix in self.images]
            if repeated is not None:
                raise BadTar(f"two members '{excerpt(repeated)}' of one key, '{excerpt(key)}'")
            if len(images) > 1:
                raise BadTar(f"two images of one key, '{excerpt(key)}'")
            offset, size = places[images[0]] if images else next(iter(places.values()))
            # A .cls comes before a .json.
            label = next((suffix for suffix in self._labels if suffix in places), None)
            number = NO_LABEL if label is None else self._number(data, label, *places[label])
            found.extend((self.images[images[0]] if images else -1, number, offset, size if images else 0))
        return found

    def _number(self, data: mmap.mmap, suffix: str, offset: int, size: int) -> int:
        """The number of a label; ``NO_LABEL``, ``BAD_LABEL``."""
        if size > (longest_name(self.field) if self.members else LONGEST_LABEL[suffix]):
            return BAD_LABEL
        content = data[offset : offset + size]
        try:
            if self.members is None:
                value = label(suffix, content)
                return value if NO_LABEL <= value < 2**31 else BAD_LABEL
            name = class_name(content, self.field)
            return NO_LABEL if name is None else self.numbers.get(name, BAD_LABEL)
        except ValueError:
            return BAD_LABEL


def json_field(suffix: str, field: str) -> str | None:
    """The field of labels in members of this suffix; None: they are texts."""
    return field if suffix.rpartition(".")[2] == "json" else None


def longest_name(field: str | None) -> int:
    """Bytes of a member that names a class."""
    return LONGEST_NAME if field is None else LONGEST_LABEL["json"]


def label(extension: str, data: bytes) -> int:
    """The label in a member; -1 if there is none. Raises ValueError: it contains no number."""
    if extension == "cls":
        return int(data)
    value = _field(data, "label", -1)
    if type(value) is not int:
        raise ValueError("label is not a whole number")
    return value


def class_name(data: bytes, field: str | None) -> str | None:
    """The name of the class in a member, or the digits of its number; None if there is none. The member is a text, or
    has it in a ``field`` of JSON. Raises ValueError: neither a text in UTF-8 nor a whole number."""
    value = data.decode() if field is None else _field(data, field, None)
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("label is neither a text nor a whole number")
    return value.strip()


def _field(data: bytes, field: str, default: object) -> object:
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return content.get(field, default) if isinstance(content, dict) else default
