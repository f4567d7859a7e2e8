"""What lies in a checkpoint, for comparison."""

from pathlib import Path

import torch
from torch import Tensor

from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import AVERAGE, FIRST_MOMENT, SECOND_MOMENT, WEIGHT
from fdtrain.networks.model import Model, ModelSpec

KINDS = (WEIGHT, AVERAGE, FIRST_MOMENT, SECOND_MOMENT)


def tensors(folder: Path, *kinds: str) -> dict[str, Tensor]:
    """Those of a checkpoint, all kinds unless some are named, by ``kind/parameter``."""
    parts, model = store.open_parts(folder), Model(ModelSpec.load(folder / "model.json"))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {f"{kind}/{name}": t for kind in kinds or KINDS for name, t in parts.whole(kind, shapes).items()}


def assert_same(a: Path, b: Path) -> None:
    """Bit for bit."""
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def assert_close(a: Path, b: Path, atol: float) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=atol, msg=lambda m, key=key: f"{key}: {m}")
