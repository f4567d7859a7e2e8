"""Downsampled ImageNet, of which there are two that share a name and must never be compared.

*Old* (van den Oord et al. 2016): PNGs in ``train_32x32.tar`` and ``valid_32x32.tar``, 1,281,149 and 49,999 images,
no labels; withdrawn. *New* (Chrabaszcz et al. 2017): pickled or npz batches, 1,281,167 and 50,000 images with
labels, resized by another filter and easier: one method has 3.69 bits/dim on the old and 3.43 on the new (Zheng
et al. 2023).
"""

from collections.abc import Sequence
from pathlib import Path

from fdtrain.data.sources.archive import members
from fdtrain.data.sources.batches import BatchFormat, batch_files, batch_part
from fdtrain.data.sources.picture import exactly, image_parts, is_image
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

CLASSES = 1000
TRAIN, VALID = [f"train_data_batch_{i}" for i in range(1, 11)], ["val_data"]


def imagenet_new(paths: Sequence[Path], size: int) -> Source:
    """The zips of batches (pickled or npz), or folders they unpack to, of 32x32 or 64x64 images. UserError: as of
    :func:`batch_files`."""
    files = batch_files(
        paths,
        [*TRAIN, *VALID],
        "Give the train and val zips as published; train_32x32.tar and valid_32x32.tar are the old version, packed by "
        "imagenet32-old.",
    )
    batch = BatchFormat(size, 1, CLASSES)
    return Source(
        name=f"imagenet{size}-new",
        source=f"{', '.join(path.name for path in paths)} (Chrabaszcz et al. 2017)",
        size=size,
        channels=3,
        classes=[str(i) for i in range(1, CLASSES + 1)],
        splits={
            split: [batch_part(files[name], batch) for name in names]
            for split, names in (("train", TRAIN), ("valid", VALID))
        },
        published={"train": 1_281_167, "valid": 50_000},
    )


def imagenet32_old(train: Path, valid: Path, share: int) -> Source:
    """The two tars of PNGs, in the order they are stored in. Raises UserError: a tar holds no images, or is broken."""
    splits = {}
    for split, path in (("train", train), ("valid", valid)):
        files = [member for member in members(path) if is_image(member)]
        if not files:
            raise UserError(f"{path} holds no images. Give train_32x32.tar and valid_32x32.tar.")
        splits[split] = image_parts(files, None, exactly(32, 3), share)
    return Source(
        name="imagenet32-old",
        source=f"{train.name}, {valid.name} (van den Oord et al. 2016)",
        size=32,
        channels=3,
        classes=[],
        splits=splits,
        published={"train": 1_281_149, "valid": 49_999},
    )
