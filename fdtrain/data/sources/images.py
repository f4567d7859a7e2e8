"""Any folder, zip or tar of images, with splits and labels if it has them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fdtrain.data.sources import labels
from fdtrain.data.sources.archive import Member, advice, members, read
from fdtrain.data.sources.picture import Colour, fit_like_first, image_parts, is_image, method
from fdtrain.data.sources.source import SPLIT_NAMES, Source, class_names, hold_out_fewer
from fdtrain.errors import UserError


class _Listing(NamedTuple):
    """Images of a split by name, and the class of each: a folder, a number, or ``None`` for all."""

    members: list[Member]
    classes: list[str] | list[int] | None

    def chosen(self, numbers: Sequence[int]) -> "_Listing":
        classes: Any = None if self.classes is None else [self.classes[i] for i in numbers]
        return _Listing([self.members[i] for i in numbers], classes)


def images(
    train: Path,
    test: Path | None,
    holdout: int,
    name: str,
    resize: int | None,
    channels: int | None,
    share: int,
    background: Colour | None = None,
) -> Source:
    """Images of one size, or of any size where ``resize`` asks for one.

    They are packed in a fixed permutation, since folders are sorted by class; without ``test``, its last
    ``holdout`` images are held out. Folders ``train`` and ``test`` (or ``val``...) inside ``train`` are its splits.

    Args:
        train, test: folder, zip or tar; a test set is optional.
        resize: side in pixels that the largest centred square is resized to (Lanczos); ``None``: all agree.
        channels: 1 or 3; ``None``: as the first image.
        background: what shows through transparent pixels; ``None``: transparency is an error.

    Raises:
        UserError: no images, an image of another size, or labels that do not fit the images.
    """
    listings, notes = _list(train)
    if len(listings) > 1 and (test or holdout):
        raise UserError(f"{train} has splits of its own ({', '.join(listings)}). Pack it without --test and --holdout.")
    if test:
        test_listings, more = _list(test, classes=_folders(listings["train"]))
        if len(test_listings) > 1:
            raise UserError(f"{test} has splits of its own ({', '.join(test_listings)}). Give one of its folders.")
        listings["test"], notes = test_listings["train"], notes + more
    listings = {split: _shuffled(listing) for split, listing in listings.items()}
    if holdout:
        listings = _held_out(listings["train"], holdout, train)
    pictures = ((str(member), partial(read, member)) for member in listings["train"].members)
    fit = fit_like_first(pictures, resize, channels, background)
    classes = _classes(listings, train)
    number = {name: index for index, name in enumerate(classes)}
    splits = {}
    for split, listing in listings.items():
        numbers = None if listing.classes is None else [number[str(key)] for key in listing.classes]
        splits[split] = image_parts(listing.members, numbers, fit, share)
    change = f", {method(resize)}" if resize else ""
    if background:
        change += ", transparency on #{:02x}{:02x}{:02x}".format(*background)
    return Source(
        name=name,
        source=", ".join(path.name for path in (train, test) if path) + change,
        size=fit.size,
        channels=fit.channels,
        classes=classes,
        splits=splits,
        notes=tuple(notes),
    )


def _list(path: Path, classes: set[str] | None = None) -> tuple[dict[str, _Listing], list[str]]:
    """The images of each split, and notes on what is skipped. ``classes``: folders that are known to be classes."""
    files = members(path)
    pictures = sorted((member for member in files if is_image(member)), key=lambda member: member.name)
    if not pictures:
        what = advice([path.name, *(file.name for file in files)])
        raise UserError(f"{path} holds no images. Give a folder, zip or tar of PNG, JPEG, WebP or BMP files.{what}")
    wrapper = _wrapper(pictures)
    written = labels.written(pictures, files, wrapper)
    listings: dict[str, _Listing] = {}
    for split, chosen in _splits([member.name.removeprefix(wrapper) for member in pictures], path).items():
        images = [pictures[i] for i in chosen]
        if written is None:
            known = set(classes or ()) if split == "train" else _folders(listings["train"])
            kinds = labels.by_folder([image.name for image in images], known, str(path))
        else:
            kinds = [written[i] for i in chosen]
            kinds = None if kinds[0] == labels.NONE else kinds
        listings[split] = _Listing(images, kinds)
    return listings, _skipped(files, path)


def _folders(listing: _Listing) -> set[str]:
    """The classes that are folders."""
    return {name for name in listing.classes or () if isinstance(name, str)}


def _wrapper(pictures: Sequence[Member]) -> str:
    """The nested folders that contain all images, with a slash after each; usually none or one."""
    folders = [member.name.split("/")[:-1] for member in pictures]
    common: list[str] = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "".join(f"{folder}/" for folder in common)


def _splits(names: Sequence[str], path: Path) -> dict[str, list[int]]:
    """Images by split: folders ``train`` and ``test`` or ``val`` side by side are splits and no classes. Raises
    UserError: folders of splits lie beside others, or one of them is missing or there twice."""
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    named: dict[str, list[str]] = {}
    for folder in sorted(set(folders)):
        if folder.lower() in SPLIT_NAMES:
            named.setdefault(SPLIT_NAMES[folder.lower()], []).append(folder)
    others = sorted(set(folders) - {folder for same in named.values() for folder in same})
    # A class may well be called 'train'.
    if not named or (list(named) == ["train"] and others):
        return {"train": list(range(len(names)))}
    doubled = [same for same in named.values() if len(same) > 1]
    if others or doubled or "train" not in named:
        beside = f", beside {', '.join(others[:5]) if any(others) else 'images'}" if others else ""
        raise UserError(
            f"{path} has folders {', '.join(folder for same in named.values() for folder in same)}{beside}: are they "
            "splits or classes? For splits, leave train and test (or valid) alone, or give one as the input and the "
            "other with --test; for classes, rename them."
        )
    split_of = {same[0]: split for split, same in named.items()}
    chosen: dict[str, list[int]] = {split: [] for split in ("train", "valid", "test") if split in named}
    for i, folder in enumerate(folders):
        chosen[split_of[folder]].append(i)
    return chosen


def _skipped(files: Sequence[Member], path: Path) -> list[str]:
    """How many files of which kinds are neither images nor labels."""
    others = [file for file in files if not is_image(file) and not labels.used(file)]
    if not others:
        return []
    kinds = Counter(PurePosixPath(file.name).suffix.lower() or "no extension" for file in others)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return [f"{path}: {len(others)} files are of other kinds and were skipped ({listed})."]


def _shuffled(listing: _Listing) -> _Listing:
    # randomness imports torch, which takes seconds that every worker process would repeat.
    from fdtrain.randomness import Purpose, stream

    return listing.chosen(stream(0, Purpose.SPLIT).permutation(len(listing.members)).tolist())


def _held_out(listing: _Listing, holdout: int, path: Path) -> dict[str, _Listing]:
    count = len(listing.members)
    if holdout >= count:
        raise UserError(f"{path} holds {count} images: {holdout} cannot be held out. {hold_out_fewer(count)}")
    rest = count - holdout
    return {"train": listing.chosen(range(rest)), "test": listing.chosen(range(rest, count))}


def _classes(listings: dict[str, _Listing], path: Path) -> list[str]:
    """All classes in order. The test set must have the same classes as the train set."""
    by_split = {split: set(listing.classes) for split, listing in listings.items() if listing.classes is not None}
    if not by_split:
        return []
    kinds = {type(label) for labels in by_split.values() for label in labels}
    if len(by_split) < len(listings) or len(kinds) > 1:
        raise UserError("the images of one split have labels, or another kind of labels. Label both alike.")
    return class_names(by_split, str(path))
