"""The labels of image files, from an EDM-style dataset.json, WebDataset-style members beside images, or folders."""

from collections.abc import Sequence, Set
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from fdtrain.data.members import LABELS, class_name, class_number
from fdtrain.data.sources.archive import Member, read
from fdtrain.errors import UserError, excerpt

LISTING = "dataset.json"


def written(images: Sequence[Member], files: Sequence[Member], wrapper: str) -> Sequence[int | None] | None:
    """The label that the files give to each image, or None for all; ``None`` if no file is about labels. ``wrapper`` is
    the ``"folder/"`` that contains everything, or empty. Raises UserError: a label cannot be read, or only some of the
    images have one."""
    by_name = {file.name: file for file in files}
    for prefix in ("", wrapper):
        if (listing := by_name.get(prefix + LISTING)) is not None:
            return _listed([image.name.removeprefix(prefix) for image in images], listing)
    return _beside(images, by_name)


def used(file: Member) -> bool:
    """Whether a file that is no image could contain labels of images."""
    return file.name.rpartition(".")[2] in LABELS


class _Listing(BaseModel):
    labels: list[tuple[str, Annotated[int, Field(strict=True, ge=0)]]] | None


def _listed(names: Sequence[str], listing: Member) -> Sequence[int | None]:
    """The labels that ``{"labels": [[path, label], ...]}`` gives; ``null`` in place of the list means none."""
    try:
        pairs = _Listing.model_validate_json(read(listing)).labels
    except ValidationError as error:
        reason = excerpt(error.errors()[0]["msg"])
        raise UserError(
            f'{listing} is not of the form {{"labels": [[path, number from 0], ...]}} ({reason}). Correct it.'
        ) from error
    if pairs is None:
        return [None] * len(names)
    table = dict(pairs)
    if len(table) < len(pairs):
        raise UserError(f"{listing} lists an image twice. Correct it.")
    if missing := next((name for name in names if name not in table), None):
        raise UserError(f"{listing}: no label for '{missing}'. Add it.")
    return [table[name] for name in names]


def _beside(images: Sequence[Member], by_name: dict[str, Member]) -> Sequence[int | None] | None:
    """``KEY.cls``, or the ``label`` of ``KEY.json``, of each image ``KEY.png``, as WebDataset shards have them."""
    labels = [_label(image, by_name) for image in images]
    labelled = [image for image, number in zip(images, labels, strict=True) if number is not None]
    if labelled and len(labelled) < len(images):
        without = images[labels.index(None)]
        raise UserError(f"{without} has no label, {labelled[0]} has one. Label all images, or none.")
    return labels if labelled else None


def _label(image: Member, by_name: dict[str, Member]) -> int | None:
    folder, slash, last = image.name.rpartition("/")
    for extension, field in LABELS.items():
        # The whole name but its extension, or, as WebDataset has it, up to its first dot.
        for key in (last.rpartition(".")[0], last.partition(".")[0]):
            if file := by_name.get(f"{folder}{slash}{key}.{extension}"):
                try:
                    name = class_name(read(file), (0, file.size), field)
                    number = -1 if name is None else class_number(name)
                    if number < -1:
                        raise ValueError
                except ValueError as error:
                    raise UserError(
                        f"{file} holds no whole number from 0 as a label. Correct it, or remove such files and give "
                        "each class a folder."
                    ) from error
                if number >= 0:
                    return number
    return None


def by_folder(names: Sequence[str], known: Set[str], where: str) -> Sequence[str | None]:
    """The first folder of each image, or None for all. One that contains all is a wrapper and no class, unless it is
    ``known``. Raises UserError: an image lies beside the folders of the others."""
    parts = [name.split("/")[:-1] for name in names]
    while all(folders and folders[0] == parts[0][0] for folders in parts) and parts[0][0] not in known:
        parts = [folders[1:] for folders in parts]
    if not any(parts):
        return [None] * len(names)
    if not all(parts):
        stray = names[next(i for i, folders in enumerate(parts) if not folders)]
        raise UserError(f"{where}: '{stray}' lies beside the class folders. Move it into one, or remove it.")
    return [folders[0] for folders in parts]
