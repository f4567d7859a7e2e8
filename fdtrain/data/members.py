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
LABELS = {"cls": None, "json": "label"}
"""The members that are labels where a data set does not name them, the first that there is, and the field of JSON."""
LONGEST_LABEL = 1 << 20
"""In bytes."""
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
        numbers: of classes by their names, where members are named; None: labels are the numbers themselves.
    """

    def __init__(self, description: DatasetDescription):
        self.members = description.members
        suffixes = self.members.image if self.members else IMAGES
        self.images = {suffix: IMAGES.index(suffix.rpartition(".")[2]) for suffix in suffixes}
        self.numbers: dict[str, int] | None = None
        self._labels: dict[str, str | None] = LABELS
        if self.members:
            suffix = self.members.label
            self._labels = {suffix: json_field(suffix, self.members.field or "label")} if suffix else {}
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
            number = NO_LABEL if label is None else self._number(data, places[label], self._labels[label])
            found.extend((self.images[images[0]] if images else -1, number, offset, size if images else 0))
        return found

    def _number(self, data: mmap.mmap, place: tuple[int, int], field: str | None) -> int:
        """The number of a label; ``NO_LABEL``, ``BAD_LABEL``."""
        try:
            name = class_name(data, place, field)
            if name is None:
                return NO_LABEL
            if self.numbers is not None:
                return self.numbers.get(name, BAD_LABEL)
            value = class_number(name)
        except ValueError:
            return BAD_LABEL
        return value if NO_LABEL <= value < 2**31 else BAD_LABEL


def json_field(suffix: str, field: str) -> str | None:
    """The field of labels in members of this suffix; None: they are texts."""
    return field if suffix.rpartition(".")[2] == "json" else None


def class_name(data: bytes | mmap.mmap, place: tuple[int, int], field: str | None) -> str | None:
    """The name of the class in a member at an offset and of a size, or the digits of its number; None if there is none.
    The member is a text, or has it in a ``field`` of JSON. Raises ValueError: neither a text in UTF-8 nor a whole
    number, or absurdly long."""
    offset, size = place
    if size > LONGEST_LABEL:
        raise ValueError(f"{size} bytes")
    content = data[offset : offset + size]
    value = content.decode() if field is None else _field(content, field)
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("label is neither a text nor a whole number")
    return value.strip()


def class_number(name: str) -> int:
    """Of a class that is named by it. Raises ValueError: by anything else."""
    # As bytes, which have no digits but those of ASCII.
    return int(name.encode())


def _field(data: bytes, field: str) -> object:
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return content.get(field) if isinstance(content, dict) else None
