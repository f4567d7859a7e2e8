"""What lies in a checkpoint, for comparison; checkpoints without a run."""

import hashlib
import json
from dataclasses import replace
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
    assert_close(a, b, atol=0)


def assert_close(a: Path, b: Path, atol: float) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=atol, msg=lambda m, key=key: f"{key}: {m}")


def write_checkpoint(
    folder: Path, step: int, parts: list[list[Fragment]], spec: ModelSpec, series: str = store.CHECKPOINTS, **state
) -> Path:
    """A checkpoint, or a snapshot of averages, of a part a rank; ``state`` are what of its description is not zero."""
    temporary = folder / series / store.temporary_name(step)
    temporary.mkdir(parents=True)
    for rank, fragments in enumerate(parts):
        part = temporary / part_name(rank)
        store.record_digest(part, write_part(part, fragments))
    counts = {"images": 0, "world_size": len(parts), "zero_stage": 0, "window": [0.0], "skips": 0, "rollbacks": 0}
    rest = {"counters": store.Counters(0.0, {}, (0.0, 0.0)), "run": {}, "code": None}
    store.describe(temporary, spec, "name: run\n", store.State(**{"step": step, **counts, **rest, **state}))
    return store.commit(temporary, len(parts))


def shared(fragments: list[Fragment], parts: int) -> list[list[Fragment]]:
    """Each cut into so many."""
    cuts = [[len(f.tensor) * rank // parts for rank in range(parts + 1)] for f in fragments]
    return [
        [replace(f, start=at[k], tensor=f.tensor[at[k] : at[k + 1]].clone()) for f, at in zip(fragments, cuts)]
        for k in range(parts)
    ]


def checkpoint_of(run, model, parts, kind=AVERAGE, step=7):
    """A checkpoint whose average is cut over so many parts."""
    whole = [Fragment(kind, name, 0, weight.detach().flatten()) for name, weight in model.named_parameters()]
    return write_checkpoint(run, step, shared(whole, parts), model.spec)


def rewrite(checkpoint, name: str, content: bytes, listed_as: str | None = None) -> None:
    """Change a file so that its checksum agrees."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][listed_as or name] = entry
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def change_state(checkpoint, change) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    rewrite(checkpoint, "state.json", json.dumps(state).encode())
