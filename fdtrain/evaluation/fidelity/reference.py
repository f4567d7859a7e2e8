"""What generated images are compared with: the measured features of a split, and what they were made of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation.fidelity.feature_networks import FeatureNetwork
from fdtrain.evaluation.fidelity.measure import FIRST_FEATURES
from fdtrain.evaluation.fidelity.moments import Moments
from fdtrain.evaluation.reporting.result import split_identity, write_file


@dataclass(frozen=True)
class Reference:
    """Moments of a split, and the features of its first images; ``metadata`` is all that defines them."""

    moments: Moments
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
    """Write in one rename, as safetensors with the definition in its metadata.

    Raises:
        UserError: it cannot be written.
    """
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
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["about"])
            count, total, outer, first_features = (
                file.get_tensor(name).to(device) for name in ("count", "total", "outer", "kept")
            )
        if not isinstance(metadata, dict):
            raise ValueError("its description is no object")
        moments = Moments(len(total), device)
        for own, stored in zip(moments.sums, (count, total, outer)):
            own.copy_(stored)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"--reference {path} holds no statistics ({error}). Remove it to make it again.") from error
    different = [key for key in wanted if metadata.get(key) != wanted[key]]
    if different:
        clauses = "; ".join(f"{key} {_brief(metadata.get(key))}, not {_brief(wanted[key])}" for key in different)
        raise UserError(f"--reference {path} was made of something else: {clauses}. Name another file, or remove it.")
    return Reference(moments, first_features, metadata)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('name')} ({str(value.get('sha256'))[:8]}...)"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
