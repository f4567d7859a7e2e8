"""What lies in a checkpoint, for comparison; checkpoints without a run."""

from pathlib import Path

import torch
from torch import Tensor

from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import (
    AVERAGE,
    Fragment,
    part_name,
    write_part,
)
from fdtrain.networks.model import Model, ModelSpec


def tensors(folder: Path, *kinds: str) -> dict[str, Tensor]:
    """Those of a checkpoint, all kinds unless some are named, by ``kind/parameter``."""
    parts, model = store.open_parts(folder), Model(ModelSpec.load(folder / "model.json"))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    there = [(kind, name) for kind, name in (key.split("/") for key in parts.index) if kind in (kinds or (kind,))]
    return {f"{k}/{name}": parts.whole(k, {name: shapes[name]})[name] for k, name in there}


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


def checkpoint_of(run, model, parts, kind=AVERAGE, step=7):
    """A checkpoint whose average is cut over so many parts."""
    temporary = run / "checkpoints" / store.temporary_name(step)
    temporary.mkdir(parents=True)
    for rank in range(parts):
        fragments = []
        for name, weight in model.named_parameters():
            flat = weight.detach().flatten()
            start, stop = (len(flat) * r // parts for r in (rank, rank + 1))
            fragments.append(Fragment(kind, name, start, flat[start:stop].clone()))
        part = temporary / part_name(rank)
        store.record_digest(part, write_part(part, fragments))
    counters = store.Counters(0.0, {}, (0.0, 0.0))
    state = store.State(step, 0, parts, 0, [0.0], 0, 0, counters, {}, None)
    store.describe(temporary, model.spec, "", state)
    return store.publish(temporary, parts)
