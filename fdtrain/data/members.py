"""Which members of a sample are its image and its label, and what the label is among the classes."""

from fdtrain.data.dataset import DatasetDescription
from fdtrain.data.decode import IMAGES, LABELS, LONGEST_LABEL, LONGEST_NAME, class_name, label

NO_LABEL, BAD_LABEL = -1, -2


class MemberReader:
    """Members by their suffix, in bytes as archives have it.

    Attributes:
        images: for each suffix of images, the format among ``IMAGES``.
        labels: for each suffix of labels, whether it comes before others of the sample.
        members: as ``dataset.json`` names them; None: it does not.
        numbers: of classes by their names, where members are named.
    """

    def __init__(self, description: DatasetDescription | None = None):
        named = description.members if description else None
        suffixes = named.image if named else IMAGES
        self.images = {suffix.encode(): IMAGES.index(suffix.rpartition(".")[2]) for suffix in suffixes}
        self.members, self.numbers = named, dict[str, int]()
        if named is None:
            self.labels = {extension.encode(): extension == "cls" for extension in LABELS}
        else:
            assert description is not None
            self.labels = {named.label.encode(): True} if named.label else {}
            self.numbers = {name: number for number, name in enumerate(description.classes)}
            self._field = json_field(named.label or "", named.field or "label")

    def longest(self, suffix: bytes) -> int:
        """Bytes of a label."""
        if self.members is None:
            return LONGEST_LABEL[suffix.decode()]
        return longest_name(self._field)

    def number(self, suffix: bytes, data: bytes) -> int:
        """The number of a label; ``NO_LABEL``, ``BAD_LABEL``."""
        try:
            if self.members is None:
                value = label(suffix.decode(), data)
                return value if NO_LABEL <= value < 2**31 else BAD_LABEL
            name = class_name(data, self._field)
            return NO_LABEL if name is None else self.numbers.get(name, BAD_LABEL)
        except ValueError:
            return BAD_LABEL


ORDINARY = MemberReader()
"""As the packer names them, and :mod:`fdtrain.data.decode` describes them."""


def json_field(suffix: str, field: str) -> str | None:
    """The field of labels in members of this suffix; None: they are texts."""
    return field if suffix.rpartition(".")[2] == "json" else None


def longest_name(field: str | None) -> int:
    """Bytes of a member that names a class."""
    return LONGEST_NAME if field is None else LONGEST_LABEL["json"]
