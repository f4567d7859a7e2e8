"""What generated images are compared with: the measured features of a split, and what they were made of.

FILE.safetensors    the sums of the features, exactly
FILE.npz            ``mu`` and ``sigma``, as pytorch-fid, clean-fid and EDM's code read and write them; ours has more,
                    which they pass over. A file of theirs does not say what it was made of
"""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import FeatureMoments, Gaussian
from fdtrain.evaluation.measure import FIRST_FEATURES
from fdtrain.evaluation.result import split_identity, write_file


@dataclass(frozen=True)
class Reference:
    """Moments of a split's features, and those features of its first images.

    ``metadata`` is all that defines them: the content of a ReferenceIdentity or a ReferenceFile.
    """

    moments: FeatureMoments | Gaussian
    first_features: Tensor
    metadata: dict[str, Any]


def definition(split: Split, flip: bool, network: FeatureNetwork) -> dict[str, Any]:
    """What statistics of a split are made of. Two with the same definition are the same."""
    return {
        **split_identity(split),
        "shape": list(split.description.shape),
        "images": len(split) * (1 + flip),
        "flip": flip,
        "kept": FIRST_FEATURES,
        "features": network.describe(),
    }


def save(reference: Reference, path: Path) -> None:
    """Write in one rename, with the definition.

    Raises:
        UserError: it cannot be written.
    """
    if path.suffix == ".npz":
        parts = reference.moments.mean, reference.moments.covariance, reference.first_features
        mu, sigma, first = (part.cpu().numpy() for part in parts)

        def write_to(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, mu=mu, sigma=sigma, kept=first, about=np.array(json.dumps(reference.metadata)))

        return write_file(path, write_to, "--reference")
    assert isinstance(reference.moments, FeatureMoments)
    count, total, outer = (part.cpu().contiguous() for part in reference.moments.sums)
    tensors = {"count": count, "total": total, "outer": outer, "kept": reference.first_features.cpu().contiguous()}
    metadata = {"about": json.dumps(reference.metadata)}
    write_file(path, lambda temporary: save_file(tensors, temporary, metadata), "--reference")


def load(path: Path, wanted: dict[str, Any], device: torch.device) -> Reference:
    """Statistics saved before.

    Raises:
        UserError: the file is broken, or its statistics were made of something else than wanted.
    """
    try:
        if path.suffix == ".npz":
            arrays = _arrays(path.read_bytes())
            metadata, moments = json.loads(str(arrays["about"])), _gaussian(arrays, device)
            first_features = torch.from_numpy(arrays["kept"]).to(device)
        else:
            metadata, moments, first_features = _load_sums(path, device)
        if not isinstance(metadata, dict):
            raise ValueError("its description is no object")
        if not torch.isfinite(moments.mean).all() or not torch.isfinite(moments.covariance).all():
            raise ValueError("they are not finite")
    except BROKEN as error:
        raise _broken(path, error) from error
    different = [key for key in wanted if metadata.get(key) != wanted[key]]
    if different:
        clauses = "; ".join(f"{key} {_brief(metadata.get(key))}, not {_brief(wanted[key])}" for key in different)
        raise UserError(f"--reference {path} was made of something else: {clauses}. Name another file, or remove it.")
    return Reference(moments, first_features, metadata)


def _load_sums(path: Path, device: torch.device) -> tuple[Any, FeatureMoments, Tensor]:
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {})["about"])
        count, total, outer, first_features = (
            file.get_tensor(name).to(device) for name in ("count", "total", "outer", "kept")
        )
    moments = FeatureMoments(len(total), device)
    for own, stored in zip(moments.sums, (count, total, outer)):
        own.copy_(stored)
    return metadata, moments, first_features


def is_of_others(path: Path | None) -> bool:
    """Whether it is a file of statistics that another program has written.

    Raises:
        UserError: it is none of statistics.
    """
    if path is None or path.suffix != ".npz" or not path.is_file():
        return False
    try:
        return "about" not in _arrays(path.read_bytes())
    except BROKEN as error:
        raise _broken(path, error) from error


def load_of_others(path: Path, network: FeatureNetwork, device: torch.device) -> Reference:
    """Mean and covariance that another program has written; there are no features of single images.

    Raises:
        UserError: the file is broken, or is of features of another size.
    """
    try:
        data, dims = path.read_bytes(), network.identity.dims
        gaussian = _gaussian(_arrays(data), device)
    except BROKEN as error:
        raise _broken(path, error) from error
    if len(gaussian.mean) != dims:
        raise UserError(
            f"--reference {path} is of {len(gaussian.mean)} features, '{network.identity.name}' has {dims}. "
            "Name the features that it was made by with --features."
        )
    metadata = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    return Reference(gaussian, torch.zeros(0, dims, device=device), metadata)


BROKEN = (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, EOFError, MemoryError)
BROKEN += (zipfile.BadZipFile, zlib.error)


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"--reference {path} holds no statistics ({excerpt(error)}). Name another file.")


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as content:
        return {name: content[name] for name in ("mu", "sigma", "kept", "about") if name in content}


def _gaussian(arrays: dict[str, np.ndarray], device: torch.device) -> Gaussian:
    mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} are no mean and covariance")
    if not torch.isfinite(mean).all() or not torch.isfinite(covariance).all():
        raise ValueError("they are not finite")
    return Gaussian(mean.to(device), covariance.to(device))


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('name')} ({str(value.get('sha256'))[:8]}...)"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
