"""Features of a set of images: measured, streamed over the ranks, and stored to compare other images with.

Images go in chunks of a batch, chunk after chunk to the ranks in turn, so that a chunk is the same computation on any
number of processes. A file of statistics, ``.npz``, has ``mu`` and ``sigma``, as pytorch-fid, clean-fid and EDM's code
read and write them; ours has more, which they pass over, and says what it was made of.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.data.split import Split
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import ClassScores, FeatureMoments, Gaussian
from fdtrain.evaluation.image_sets import PixelSet
from fdtrain.evaluation.result import split_identity, write_file
from fdtrain.evaluation.stored_rows import bar

FEATURES_AT_ONCE = 64
"""Images whose features are computed in one pass: at the sizes of Inception's they take more memory than to sample."""
FIRST_FEATURES = 10_000
"""The number of first images of a set whose features are stored, for the distances that moments do not give."""
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, EOFError, MemoryError)
UNREADABLE += (zipfile.BadZipFile, zlib.error)
"""What readers raise of a file that holds no statistics."""


@dataclass(frozen=True)
class Measured:
    """Of a whole set, on every rank: moments, the first features ``(k, dims)`` float32, class scores if asked for.

    ``about`` is what statistics are of, which their files say: :func:`definition`.
    """

    moments: Gaussian
    first_features: Tensor
    scores: ClassScores | None = None
    about: dict[str, Any] | None = None


def measure(
    network: FeatureNetwork,
    images: PixelSet,
    batch: int,
    device: torch.device,
    scored: bool = False,
    title: str | None = None,
) -> Measured:
    """Features of a set of images. Every rank must call it.

    Args:
        scored: gather class scores too, if the network knows classes.
        title: of the progress; None: it is not shown.

    Raises:
        UserError: an image cannot be read, or a feature is not finite.
    """
    count, moments = images.count, FeatureMoments(network.identity.dims, device)
    first_features = torch.zeros(min(count, FIRST_FEATURES), network.identity.dims, device=device)
    classify, scores = network.classify if scored else None, None
    if classify:
        classes = classify(torch.zeros(1, *images.shape, dtype=torch.uint8, device=device)).shape[1]
        scores = ClassScores(classes, count, device)
    mine = distributed.chunks(range(count), batch)[distributed.rank() :: distributed.world_size()]
    with bar(sum(map(len, mine)), title) as shown:
        for chunk in mine:
            pixels = images.batch(chunk).to(device)
            features = torch.cat([network.run(part) for part in pixels.split(FEATURES_AT_ONCE)])
            moments.add(features)
            if chunk.start < len(first_features):
                first_features[chunk.start : chunk.stop] = features[: len(first_features) - chunk.start]
            if classify and scores:
                scores.add(chunk.start, classify(pixels))
            shown.update(len(chunk))
    for part in (*moments.sums, *(scores.sums if scores else ()), first_features):
        distributed.all_reduce_sum(part)
    if not torch.isfinite(moments.total).all():
        raise UserError(f"the features '{network.identity.name}' of {images.name} are not finite.")
    return Measured(moments.gaussian(), first_features, scores)


def definition(split: Split, flip: bool, network: FeatureNetwork) -> dict[str, Any]:
    """What statistics of a split are made of, as a ReferenceIdentity says it: the same for the same statistics."""
    return {
        **split_identity(split),
        "shape": list(split.description.shape),
        "images": len(split) * (1 + flip),
        "flip": flip,
        "kept": FIRST_FEATURES,
        "features": network.describe(),
    }


def save(measured: Measured, path: Path) -> None:
    """Write statistics in one rename. Raises UserError: they cannot be written."""
    moments, kept = measured.moments, measured.first_features.cpu().numpy()
    mu, sigma = moments.mean.cpu().numpy(), moments.covariance.cpu().numpy()

    def write_to(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(measured.about)), mu=mu, sigma=sigma, kept=kept)

    write_file(path, write_to)


def read(path: Path, device: torch.device) -> Measured:
    """Statistics. Those of other programs do not say what they are of, and have no features of single images.
    Raises UserError: the file holds none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("mu", "sigma", "kept", "about") if name in file}
        about = json.loads(str(arrays["about"])) if "about" in arrays else None
        mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
        if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} are no mean and covariance")
        if not torch.isfinite(mean).all() or not torch.isfinite(covariance).all():
            raise ValueError("they are not finite")
        first = torch.from_numpy(arrays["kept"]) if "kept" in arrays else torch.zeros(0, len(mean))
        return Measured(Gaussian(mean.to(device), covariance.to(device)), first.to(device), about=about)
    except UNREADABLE as error:
        raise UserError(f"--reference {path} holds no statistics ({excerpt(error)}). Name another file.") from error
