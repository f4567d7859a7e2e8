"""Data sets as their authors published them: CIFAR, the two downsampled ImageNets, CelebA.

CIFAR-10 and CIFAR-100 (Krizhevsky 2009): ``cifar-10-python.tar.gz``, or the unpacked folder.

Of downsampled ImageNet there are two that share a name and must never be compared. *Old* (van den Oord et al. 2016):
PNGs in ``train_32x32.tar`` and ``valid_32x32.tar``, 1,281,149 and 49,999 images, no labels; withdrawn. *New*
(Chrabaszcz et al. 2017): pickled or npz batches, 1,281,167 and 50,000 images with labels, resized by another filter and
easier: one method has 3.69 bits/dim on the old and 3.43 on the new (Zheng et al. 2023).

CelebA (Liu et al. 2015), aligned and cropped: ``img_align_celeba.zip``.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from fdtrain.data.sources import pickled
from fdtrain.data.sources.archive import Member, members
from fdtrain.data.sources.batches import BatchFormat, batch_files, batch_part
from fdtrain.data.sources.images import image_parts, is_image
from fdtrain.data.sources.picture import Fit, exactly
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

IMAGENET_CLASSES = 1000
IMAGENET_TRAIN = [f"train_data_batch_{i}" for i in range(1, 11)]
PARTITION = "list_eval_partition.txt"
"""The splits of CelebA, beside its zip."""
CELEBA_SPLITS = ("train", "valid", "test")
# The last images of train and of valid in the published partition, which goes by number.
LAST_TRAIN, LAST_VALID = 162_770, 182_637


def cifar10(path: Path) -> Source:
    """50,000 images to train and 10,000 to test, 32x32 RGB, in ten classes. UserError: as of :func:`batch_files`."""
    return _cifar(path, 10, "batches.meta", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "label")


def cifar100(path: Path) -> Source:
    """The same in a hundred classes, the fine ones."""
    return _cifar(path, 100, "meta", ["train"], "test", "fine_label")


def _cifar(path: Path, number: int, meta: str, train: list[str], test: str, label: str) -> Source:
    wanted = f"Give cifar-{number}-python.tar.gz as published."
    files = batch_files([path], [meta, *train, test], wanted)
    names = pickled.load(files[meta]).get(f"{label}_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{files[meta]} has no '{label}_names'. {wanted}")
    batch = BatchFormat(32, 0, len(names), f"{label}s")
    return Source(
        name=f"cifar{number}",
        source=path.name,
        fit=exactly(32, 3),
        classes=[name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names],
        splits={"train": [batch_part(files[name], batch) for name in train], "test": [batch_part(files[test], batch)]},
        published={"train": 50_000, "test": 10_000},
    )


def imagenet_new(paths: Sequence[Path], size: int) -> Source:
    """The zips of batches (pickled or npz), or folders they unpack to, of 32x32 or 64x64 images. UserError: as of
    :func:`batch_files`."""
    files = batch_files(
        paths,
        [*IMAGENET_TRAIN, "val_data"],
        "Give the train and val zips as published; train_32x32.tar and valid_32x32.tar are the old version, packed by "
        "imagenet32-old.",
    )
    batch = BatchFormat(size, 1, IMAGENET_CLASSES)
    return Source(
        name=f"imagenet{size}-new",
        source=f"{', '.join(path.name for path in paths)} (Chrabaszcz et al. 2017)",
        fit=exactly(size, 3),
        classes=[str(i) for i in range(1, IMAGENET_CLASSES + 1)],
        splits={
            "train": [batch_part(files[name], batch) for name in IMAGENET_TRAIN],
            "valid": [batch_part(files["val_data"], batch)],
        },
        published={"train": 1_281_167, "valid": 50_000},
    )


def imagenet32_old(train: Path, valid: Path, share: int) -> Source:
    """The two tars of PNGs, in the order they are stored in. Raises UserError: a tar holds no images, or is broken."""
    pictures = {split: _pictures(path, f"{split}_32x32.tar") for split, path in (("train", train), ("valid", valid))}
    return Source(
        name="imagenet32-old",
        source=f"{train.name}, {valid.name} (van den Oord et al. 2016)",
        fit=exactly(32, 3),
        classes=[],
        splits={split: image_parts(files, None, share) for split, files in pictures.items()},
        published={"train": 1_281_149, "valid": 49_999},
    )


def celeba64(path: Path, share: int) -> Source:
    """Centre crop of 140x140, resized to 64x64 by an antialiased bilinear filter. No labels.

    Splits are those of ``list_eval_partition.txt`` where it lies beside the zip; without it, by the number in the
    file's name, with the same result: train to 162770, valid to 182637, test from there. Raises UserError: not the
    published archive, or an image that the partition does not place."""
    listing = path.parent / PARTITION
    partition = _partition(listing) if listing.is_file() else None
    splits: dict[str, list[Member]] = {split: [] for split in CELEBA_SPLITS}
    for member in sorted(_pictures(path, "img_align_celeba.zip"), key=lambda member: member.name):
        splits[_celeba_split(member, partition)].append(member)
    return Source(
        name="celeba64",
        source=f"{path.name}, centre crop 140x140, bilinear to 64x64, splits "
        + (f"of {PARTITION}" if partition else "by number"),
        fit=Fit(64, 3, picture=(178, 218), crop=140, filter=Image.Resampling.BILINEAR),
        classes=[],
        splits={split: image_parts(chosen, None, share) for split, chosen in splits.items() if chosen},
        published={"train": 162_770, "valid": 19_867, "test": 19_962},
    )


def _partition(listing: Path) -> dict[str, str]:
    try:
        rows = [line.split() for line in listing.read_text(errors="replace").splitlines() if line.strip()]
        return {name: {"0": "train", "1": "valid", "2": "test"}[split] for name, split in rows}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{listing}: expected lines of 'NAME 0', '1' or '2' ({error}). Fetch it again.") from error


def _celeba_split(member: Member, partition: dict[str, str] | None) -> str:
    name = PurePosixPath(member.name)
    if partition is not None:
        if name.name not in partition:
            raise UserError(f"{member} is not in {PARTITION}. Fetch both again.")
        return partition[name.name]
    if not name.stem.isdecimal():
        raise UserError(f"{member} is not named by a number. Give img_align_celeba.zip as published.")
    return CELEBA_SPLITS[(int(name.stem) > LAST_TRAIN) + (int(name.stem) > LAST_VALID)]


def _pictures(path: Path, published: str) -> list[Member]:
    files = [member for member in members(path) if is_image(member)]
    if not files:
        raise UserError(f"{path} holds no images. Give {published} as published.")
    return files
