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
from fdtrain.evaluation.fidelity.measure import KEPT
from fdtrain.evaluation.fidelity.moments import Moments
from fdtrain.evaluation.reporting.result import replace, split_identity


@dataclass(frozen=True)
class Reference:
    """Moments and first features of a split; ``about`` is all that defines them."""

    moments: Moments
    kept: Tensor
    about: dict[str, Any]


def definition(split: Split, flip: bool, network: FeatureNetwork) -> dict[str, Any]:
    """What statistics of a split are made of. Two with the same definition are the same."""
    return {
        **split_identity(split),
        "shape": list(split.description.shape),
        "images": len(split) * (1 + flip),
        "flip": flip,
        "kept": KEPT,
        "features": network.describe(),
    }


def save(reference: Reference, path: Path) -> None:
    """Write in one rename, as safetensors with the definition in its metadata.

    Raises:
        UserError: it cannot be written.
    """
    count, total, outer = (part.cpu().contiguous() for part in reference.moments.sums)
    tensors = {"count": count, "total": total, "outer": outer, "kept": reference.kept.cpu().contiguous()}
    about = {"about": json.dumps(reference.about)}
    replace(path, lambda aside: save_file(tensors, aside, about), "--reference")


def load(path: Path, wanted: dict[str, Any], device: torch.device) -> Reference:
    """Statistics saved before.

    Raises:
        UserError: the file is broken, or its statistics were made of something else than wanted.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            count, total, outer, kept = (
                file.get_tensor(name).to(device) for name in ("count", "total", "outer", "kept")
            )
        if not isinstance(about, dict):
            raise ValueError("its description is no object")
        moments = Moments(len(total), device)
        for mine, theirs in zip(moments.sums, (count, total, outer)):
            mine.copy_(theirs)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"--reference {path} holds no statistics ({error}). Remove it to have it made anew.") from error
    different = [key for key in wanted if about.get(key) != wanted[key]]
    if different:
        clauses = "; ".join(f"{key} {_brief(about.get(key))}, not {_brief(wanted[key])}" for key in different)
        raise UserError(f"--reference {path} was made of something else: {clauses}. Name another file, or remove it.")
    return Reference(moments, kept, about)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('name')} ({str(value.get('sha256'))[:8]}...)"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
