"""Any folder, zip or tar of images, with splits and labels if it has them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from fdtrain.data.sources import labels
from fdtrain.data.sources.archive import Member, advice, members, read
from fdtrain.data.sources.picture import Colour, method
from fdtrain.data.sources.source import (
    SPLIT_NAMES,
    Part,
    Sample,
    Source,
    class_names,
    even,
    fit_like_first,
    hold_out_fewer,
)
from fdtrain.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
Labelled = tuple[Member, str | int | None]
"""An image, and its class: a folder, a number, or None."""


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
    splits, notes = _list(train)
    if len(splits) > 1 and (test or holdout):
        raise UserError(f"{train} has splits of its own ({', '.join(splits)}). Pack it without --test and --holdout.")
    if test:
        held_out, more = _list(test, _folders(splits["train"]))
        if len(held_out) > 1:
            raise UserError(f"{test} has splits of its own ({', '.join(held_out)}). Give one of its folders.")
        splits["test"], notes = held_out["train"], notes + more
    splits = {split: _shuffled(listed) for split, listed in splits.items()}
    if holdout:
        rest = len(splits["train"]) - holdout
        if rest < 1:
            raise UserError(
                f"{train} holds {rest + holdout} images: {holdout} cannot be held out. {hold_out_fewer(rest + holdout)}"
            )
        splits = {"train": splits["train"][:rest], "test": splits["train"][rest:]}
    classes = _classes(splits, train)
    number = {name: index for index, name in enumerate(classes)}
    parts = {
        split: image_parts([m for m, _ in listed], [number.get(str(kind), -1) for _, kind in listed], share)
        for split, listed in splits.items()
    }
    change = f", {method(resize)}" if resize else ""
    if background:
        change += ", transparency on #{:02x}{:02x}{:02x}".format(*background)
    return Source(
        name=name,
        source=", ".join(path.name for path in (train, test) if path) + change,
        fit=fit_like_first(parts["train"], str(train), resize, channels, background),
        classes=classes,
        splits=parts,
        notes=tuple(notes),
    )


def is_image(member: Member) -> bool:
    return member.name.lower().endswith(EXTENSIONS)


def image_parts(members: Sequence[Member], labels: Sequence[int] | None, share: int) -> list[Part]:
    """Image files in parts of about ``share``, in the order given."""
    labels = [-1] * len(members) if labels is None else labels
    return [_part(members[r.start : r.stop], labels[r.start : r.stop]) for r in even(len(members), share)]


def _part(members: Sequence[Member], labels: Sequence[int]) -> Part:
    identity = [(member.name, member.size) for member in members], tuple(labels)
    return Part(identity, len(members), partial(_open, members, labels))


def _open(members: Sequence[Member], labels: Sequence[int]) -> Callable[[int], Sample]:
    return lambda index: (read(members[index]), labels[index], str(members[index]))


def _list(path: Path, known: Set[str] = frozenset()) -> tuple[dict[str, list[Labelled]], list[str]]:
    """The images of each split, and notes on what is skipped. ``known``: folders that are classes."""
    files = members(path)
    pictures = sorted((member for member in files if is_image(member)), key=lambda member: member.name)
    if not pictures:
        what = advice([path.name, *(file.name for file in files)])
        raise UserError(f"{path} holds no images. Give a folder, zip or tar of PNG, JPEG, WebP or BMP files.{what}")
    wrapper = _wrapper(pictures)
    written = labels.written(pictures, files, wrapper)
    splits: dict[str, list[Labelled]] = {}
    for split, chosen in _splits([member.name.removeprefix(wrapper) for member in pictures], path).items():
        images = [pictures[i] for i in chosen]
        if written is None:
            kinds = labels.by_folder([image.name for image in images], known, str(path))
        else:
            kinds = [written[i] for i in chosen]
        splits[split] = list(zip(images, kinds, strict=True))
        known = known or _folders(splits["train"])
    return splits, _skipped(files, path)


def _folders(listed: Sequence[Labelled]) -> set[str]:
    """The classes that are folders."""
    return {kind for _, kind in listed if isinstance(kind, str)}


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


def _shuffled(listed: Sequence[Labelled]) -> list[Labelled]:
    # randomness imports torch, which takes seconds that every worker process would repeat.
    from fdtrain.randomness import Purpose, stream

    return [listed[i] for i in stream(0, Purpose.SPLIT).permutation(len(listed)).tolist()]


def _classes(splits: Mapping[str, Sequence[Labelled]], path: Path) -> list[str]:
    """All classes in order. The test set must have the same classes as the train set."""
    kinds: dict[str, set[Any]] = {split: {kind for _, kind in listed} for split, listed in splits.items()}
    if len({type(kind) for of in kinds.values() for kind in of}) > 1:
        raise UserError("the images of one split have labels, or another kind of labels. Label both alike.")
    return [] if kinds["train"] == {None} else class_names(kinds, str(path))
