"""Features of a set of images: measured, streamed over the ranks, and stored to compare other images with.

Images go in chunks of a batch, chunk after chunk to the ranks in turn, so that a chunk is the same computation on any
number of processes. A file of statistics, ``.npz`` or ``.safetensors``, has ``mu`` and ``sigma``, as pytorch-fid,
clean-fid and EDM's code read and write them as ``.npz``; ours has more, which they pass over, and says what it was made
of.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fdtrain import distributed
from fdtrain.data.split import Split
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import ClassScores, FeatureMoments, Gaussian
from fdtrain.evaluation.image_sets import PixelSet
from fdtrain.evaluation.result import split_identity, write_file

FEATURES_AT_ONCE = 64
"""Images whose features are computed in one pass: at the sizes of Inception's they take more memory than to sample."""
FIRST_FEATURES = 10_000
"""The number of first images of a set whose features are stored, for the distances that moments do not give."""
UNREADABLE = (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, EOFError, MemoryError)
UNREADABLE += (zipfile.BadZipFile, zlib.error)
"""What readers raise of a file that holds no statistics."""


@dataclass(frozen=True)
class Measured:
    """Of a whole set, on every rank: moments, the first features ``(k, dims)`` float32, class scores if asked for."""

    moments: Gaussian
    first_features: Tensor
    scores: ClassScores | None = None


def own_chunks(images: range, batch: int) -> Iterator[range]:
    """This rank's chunks of ``images``."""
    for i in range(distributed.rank() * batch, len(images), distributed.world_size() * batch):
        yield images[i : i + batch]


def measure(
    network: FeatureNetwork,
    images: PixelSet,
    count: int,
    batch: int,
    device: torch.device,
    scored: bool = False,
    progress: Callable[[int], object] = lambda images: None,
) -> Measured:
    """Features of the first ``count`` images. Every rank must call it.

    Args:
        scored: gather class scores too, if the network knows classes.
        progress: hears of this rank's images.

    Raises:
        UserError: there are fewer images, one cannot be read, or a feature is not finite.
    """
    if images.count < count:
        raise UserError(f"{images.name} holds {images.count} images, {count} are asked for.")
    moments = FeatureMoments(network.identity.dims, device)
    first_features = torch.zeros(min(count, FIRST_FEATURES), network.identity.dims, device=device)
    classify, scores = network.classify if scored else None, None
    if classify:
        classes = classify(torch.zeros(1, *images.shape, dtype=torch.uint8, device=device)).shape[1]
        scores = ClassScores(classes, count, device)
    for chunk in own_chunks(range(count), batch):
        pixels = images.batch(chunk).to(device)
        features = torch.cat([network.run(part) for part in pixels.split(FEATURES_AT_ONCE)])
        moments.add(features)
        if chunk.start < len(first_features):
            first_features[chunk.start : chunk.stop] = features[: len(first_features) - chunk.start]
        if classify and scores:
            scores.add(chunk.start, classify(pixels))
        progress(len(chunk))
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


def save(measured: Measured, about: dict[str, Any], path: Path) -> None:
    """Write statistics, and the definition ``about`` them, in one rename.

    Raises:
        UserError: it cannot be written.
    """
    parts = {"mu": measured.moments.mean, "sigma": measured.moments.covariance, "kept": measured.first_features}
    arrays, text = {name: part.contiguous().cpu().numpy() for name, part in parts.items()}, json.dumps(about)

    def write_to(temporary: Path) -> None:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, about=np.array(text), mu=arrays["mu"], sigma=arrays["sigma"], kept=arrays["kept"])
        else:
            save_file(arrays, temporary, {"about": text})

    write_file(path, write_to)


def load(path: Path, wanted: dict[str, Any], device: torch.device) -> Measured:
    """Statistics saved before.

    Raises:
        UserError: the file is broken, or its statistics were made of something else than wanted.
    """
    measured, about = _read(path, device)
    about = about or {}
    different = [key for key in wanted if about.get(key) != wanted[key]]
    if different:
        clauses = "; ".join(f"{key} {_brief(about.get(key))}, not {_brief(wanted[key])}" for key in different)
        raise UserError(f"--reference {path} was made of something else: {clauses}. Name another file, or remove it.")
    return measured


def is_of_others(path: Path | None) -> bool:
    """Whether it is a file of statistics that another program has written.

    Raises:
        UserError: it is none of statistics.
    """
    if path is None or path.suffix != ".npz" or not path.is_file():
        return False
    return _read(path, torch.device("cpu"))[1] is None


def load_of_others(path: Path, network: FeatureNetwork, device: torch.device) -> tuple[Measured, dict[str, Any]]:
    """Mean and covariance that another program has written, without features of single images, and what a
    ReferenceFile says of them.

    Raises:
        UserError: the file is broken, or is of features of another size.
    """
    measured, dims = _read(path, device)[0], network.identity.dims
    if len(measured.moments.mean) != dims:
        raise UserError(
            f"--reference {path} is of {len(measured.moments.mean)} features, '{network.identity.name}' has {dims}. "
            "Name the features that it was made by with --features."
        )
    return measured, {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _read(path: Path, device: torch.device) -> tuple[Measured, dict[str, Any] | None]:
    """Statistics, and their definition, which files of other programs have not."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("mu", "sigma", "kept", "about") if name in file}
            about = json.loads(str(arrays["about"])) if "about" in arrays else None
        else:
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads((file.metadata() or {})["about"])
        if about is not None and not isinstance(about, dict):
            raise ValueError("its description is no object")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "about"}
        moments = _gaussian(tensors)
        first = tensors.get("kept", torch.zeros(0, len(moments.mean)))
        moved = Gaussian(moments.mean.to(device), moments.covariance.to(device))
        return Measured(moved, first.to(device)), about
    except UNREADABLE as error:
        raise UserError(f"--reference {path} holds no statistics ({excerpt(error)}). Name another file.") from error


def _gaussian(tensors: dict[str, Tensor]) -> Gaussian:
    if "outer" in tensors:  # The sums, as earlier versions stored them.
        sums = FeatureMoments(len(tensors["total"]))
        for own, name in zip(sums.sums, ("count", "total", "outer")):
            own.copy_(tensors[name])
        gaussian = sums.gaussian()
    else:
        gaussian = Gaussian(tensors["mu"].double(), tensors["sigma"].double())
    mean, covariance = gaussian.mean, gaussian.covariance
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} are no mean and covariance")
    if not torch.isfinite(mean).all() or not torch.isfinite(covariance).all():
        raise ValueError("they are not finite")
    return gaussian


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('name')} ({str(value.get('sha256'))[:8]}...)"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
