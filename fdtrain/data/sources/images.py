"""Any folder, zip or tar of images; classes are its folders, or the labels of an EDM-style dataset.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fdtrain.data.sources.archive import Member, members, read
from fdtrain.data.sources.picture import fit_like, image_parts, is_image
from fdtrain.data.sources.source import Source, numbered
from fdtrain.errors import UserError

LABELS = "dataset.json"


class _Listing(NamedTuple):
    """Images by name, and the class of each: a folder, a number, or ``None`` for all."""

    members: list[Member]
    classes: list[str] | list[int] | None


def images(
    train: Path,
    test: Path | None,
    holdout: int,
    name: str,
    resize: int | None,
    channels: int | None,
    share: int,
) -> Source:
    """Images of one size, or of any size where ``resize`` asks for one.

    They are packed in a fixed permutation, since folders come class by class; without ``test``, its last
    ``holdout`` images are held out.

    Args:
        train, test: folder, zip or tar; a test set is optional.
        holdout: images to hold out for testing.
        name: of the data set.
        resize: side in pixels that the largest centred square is resized to (Lanczos); ``None``: all agree.
        channels: 1 or 3; ``None``: as the first image.
        share: images of a part, about.

    Raises:
        UserError: no images, an image of another size, or labels that do not fit the images.
    """
    listings = {"train": _shuffled(_list(train))}
    if test:
        listings["test"] = _shuffled(_list(test))
    elif holdout:
        listings = _held_out(listings["train"], holdout, train)
    first = listings["train"].members[0]
    fit = fit_like(read(first), str(first), resize, channels)
    classes = _classes(listings, train)
    number = {name: index for index, name in enumerate(classes)}
    splits = {}
    for split, listing in listings.items():
        labels = None if listing.classes is None else [number[str(key)] for key in listing.classes]
        splits[split] = image_parts(listing.members, labels, fit, share)
    change = f", largest centre square, Lanczos to {resize}x{resize}" if resize else ""
    return Source(
        name=name,
        source=", ".join(path.name for path in (train, test) if path) + change,
        size=fit.size,
        channels=fit.channels,
        classes=classes,
        splits=splits,
    )


def _list(path: Path) -> _Listing:
    files = members(path)
    found = sorted((member for member in files if is_image(member)), key=lambda member: member.name)
    if not found:
        raise UserError(f"{path} holds no images. Give a folder, zip or tar of PNG, JPEG, WebP or BMP files.")
    labels = next((member for member in files if member.name == LABELS), None)
    return _Listing(found, _listed(found, labels) if labels else _folders(found, path))


def _folders(found: Sequence[Member], path: Path) -> list[str] | None:
    """The first folder of each image. One folder that holds all is a wrapper and no class."""
    parts = [member.name.split("/") for member in found]
    if all(len(names) > 1 and names[0] == parts[0][0] for names in parts):
        parts = [names[1:] for names in parts]
    inside = [len(names) > 1 for names in parts]
    if not any(inside):
        return None
    if not all(inside):
        stray = found[inside.index(False)].name
        raise UserError(f"{path}: '{stray}' lies beside the class folders. Move it into one, or remove it.")
    return [names[0] for names in parts]


def _listed(found: Sequence[Member], labels: Member) -> list[int] | None:
    """The labels that ``{"labels": [[path, label], ...]}`` gives; ``null`` in place of the list means none."""
    try:
        content = json.loads(read(labels))["labels"]
        if content is None:
            return None
        table = {str(path): label for path, label in content}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{labels} is not of the form {{"labels": [[path, label], ...]}}. Correct it.') from error
    for member in found:
        label = table.get(member.name)
        if type(label) is not int or label < 0:
            raise UserError(f"{labels}: no label, a number from 0, for '{member.name}'. Add it.")
    return [table[member.name] for member in found]


def _shuffled(listing: _Listing) -> _Listing:
    # torch, which randomness needs, takes seconds to import, which every worker process would spend.
    from fdtrain.randomness import Purpose, stream

    order = stream(0, Purpose.SPLIT).permutation(len(listing.members)).tolist()
    classes = None if listing.classes is None else [listing.classes[i] for i in order]
    return _Listing([listing.members[i] for i in order], classes)


def _held_out(listing: _Listing, holdout: int, path: Path) -> dict[str, _Listing]:
    rest = len(listing.members) - holdout
    if rest < 1:
        raise UserError(f"{path} holds {len(listing.members)} images: {holdout} cannot be held out. Ask for fewer.")
    cut = {"train": slice(0, rest), "test": slice(rest, None)}
    return {
        split: _Listing(listing.members[part], None if listing.classes is None else listing.classes[part])
        for split, part in cut.items()
    }


def _classes(listings: dict[str, _Listing], path: Path) -> list[str]:
    """All classes in order. The test set must have those of the train set."""
    found = [listing.classes for listing in listings.values()]
    if all(classes is None for classes in found):
        return []
    if any(classes is None for classes in found) or len({type(classes[0]) for classes in found}) > 1:
        raise UserError("one of the train and test images has labels, or another kind of labels. Label both alike.")
    train, every = set(found[0]), set().union(*found)
    if isinstance(found[0][0], int):
        return numbered(max(every), str(path))
    if every != train:
        raise UserError(f"the test images have classes that the train images lack: {sorted(every - train)}.")
    return sorted(train)
