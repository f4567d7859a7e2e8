"""CelebA (Liu et al. 2015), aligned and cropped: ``img_align_celeba.zip`` to the usual 64x64."""

from pathlib import Path, PurePosixPath

from PIL import Image

from fdtrain.data.sources.archive import Member, members
from fdtrain.data.sources.picture import Fit, image_parts, is_image
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

PARTITION = "list_eval_partition.txt"
SPLITS = ("train", "valid", "test")
# Last image of train and of valid in the published partition, which goes by number.
LAST_TRAIN, LAST_VALID = 162_770, 182_637

FIT = Fit(64, 3, picture=(178, 218), crop=140, filter=Image.Resampling.BILINEAR)


def celeba64(path: Path, share: int) -> Source:
    """Centre crop of 140x140, resized to 64x64 by an antialiased bilinear filter. No labels.

    Splits are those of ``list_eval_partition.txt`` where it lies beside the zip; without it, by the number in the
    file's name, with the same result: train to 162770, valid to 182637, test from there. Raises UserError: not the
    published archive, or an image that the partition does not place."""
    files = [member for member in members(path) if is_image(member)]
    if not files:
        raise UserError(f"{path} holds no images. Give img_align_celeba.zip as published.")
    listing = path.parent / PARTITION
    partition = _partition(listing) if listing.is_file() else None
    splits: dict[str, list[Member]] = {split: [] for split in SPLITS}
    for member in sorted(files, key=lambda member: member.name):
        splits[_split(member, partition)].append(member)
    return Source(
        name="celeba64",
        source=f"{path.name}, centre crop 140x140, bilinear to 64x64, splits "
        + (f"of {PARTITION}" if partition else "by number"),
        size=64,
        channels=3,
        classes=[],
        splits={split: image_parts(chosen, None, FIT, share) for split, chosen in splits.items() if chosen},
        published={"train": 162_770, "valid": 19_867, "test": 19_962},
    )


def _partition(listing: Path) -> dict[str, str]:
    try:
        lines = listing.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{listing} cannot be read ({error.strerror}). Make it readable, or remove it.") from error
    partition = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise UserError(f"{listing}, line {number}: expected 'NAME 0', '1' or '2'. Fetch it again.")
        partition[fields[0]] = SPLITS[int(fields[1])]
    return partition


def _split(member: Member, partition: dict[str, str] | None) -> str:
    name = PurePosixPath(member.name)
    if partition is not None:
        if name.name not in partition:
            raise UserError(f"{member} is not in {PARTITION}. Fetch both again.")
        return partition[name.name]
    if not name.stem.isdecimal():
        raise UserError(f"{member} is not named by a number. Give img_align_celeba.zip as published.")
    return SPLITS[(int(name.stem) > LAST_TRAIN) + (int(name.stem) > LAST_VALID)]
