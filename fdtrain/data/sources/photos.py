"""The colour photographs that scikit-image and scikit-learn ship: natural images that need no download."""

import importlib.util
from pathlib import Path

from fdtrain.data.sources.archive import Member
from fdtrain.data.sources.crops import crop_parts, method, survey
from fdtrain.data.sources.picture import Fit
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError

PHOTOGRAPHS = {
    "train": {"skimage/data": ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")}
    | {"sklearn/datasets/images": ("flower.jpg",)},
    "test": {"skimage/data": ("chelsea.png",), "sklearn/datasets/images": ("china.jpg",)},
}


def photos(size: int, crops: int, share: int) -> Source:
    """Random crops of five photographs to train, and of two others to test. No labels.

    Raises:
        UserError: scikit-image is not installed, or lacks a photograph.
    """
    splits = {
        split: [_member(package, name) for package, names in packages.items() for name in names]
        for split, packages in PHOTOGRAPHS.items()
    }
    fit = Fit(size, 3, picture=None)
    return Source(
        name=f"photos{size}",
        source=f"photographs of scikit-image and scikit-learn, {method(size, crops)}",
        size=size,
        channels=3,
        classes=[],
        splits={split: crop_parts(members, None, fit, crops, share) for split, members in splits.items()},
        preparation=survey(splits, fit, crops),
    )


def _member(folder: str, name: str) -> Member:
    package, _, inside = folder.partition("/")
    # Found without importing it.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the photographs need {package}. Install it: pip install scikit-image scikit-learn.")
    path = Path(found.submodule_search_locations[0]) / inside / name
    if not path.is_file():
        raise UserError(f"{path} is missing. Install another version: pip install -U scikit-image scikit-learn.")
    size = path.stat().st_size
    return Member(path, name, size, "file", stored=size)
