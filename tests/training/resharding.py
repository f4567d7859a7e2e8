"""One rank that saves at every stage, or loads at each what any saved: ``resharding.py save|load FOLDER``.

It writes what it found after loading into ``FOLDER/found_WORLD_RANK.json``: by what was loaded and under which stage,
the elements that differ from the checkpoint, by kind, and the losses of the steps that follow.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from models import DIGITS

from fdtrain import distributed
from fdtrain.capacity.layout import run_layout
from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import (
    FIRST_MOMENT,
    MOMENTUM,
    SECOND_MOMENT,
    WEIGHT,
    FragmentReader,
    part_name,
    write_part,
)
from fdtrain.config import TrainingConfig
from fdtrain.networks.model import Model
from fdtrain.training.engine import Engine

STAGES = (0, 1, 2, 3)
MOMENTS = (FIRST_MOMENT, SECOND_MOMENT, MOMENTUM)
SAVED_AFTER, STEPS = 3, 5


def new_engine(stage: int, seed: int) -> Engine:
    torch.manual_seed(seed)
    # Warm moments from the first step on: what is lost of them shows at once. Muon has AdamW step the rest.
    settings = {"precision": "fp32", "optimizer": "muon", "lr": 1e-3, "betas": (0.9, 0.99)}
    training = TrainingConfig(steps=1, global_batch=8, lanes=4, zero_stage=stage, **settings)
    return Engine(Model(DIGITS), training, run_layout(training, distributed.world_size(), distributed.rank()))


def train(engine: Engine, step: int) -> float:
    """One step on images that the step's number fixes; the loss of the global batch."""
    draws = torch.Generator().manual_seed(step)
    x = torch.randn(8, *DIGITS.shape, generator=draws)
    t = torch.rand(8, generator=draws, dtype=torch.float64)
    mine = distributed.share(8)
    loss = (engine.field()(x[mine.start : mine.stop], t[mine.start : mine.stop]) - 1).square().mean()
    engine.backward(loss)
    engine.step(1e-3)
    return float(distributed.all_reduce_sum(loss.detach().double()) / distributed.world_size())


def save(engine: Engine, run: Path) -> None:
    temporary = run / "checkpoints" / store.temporary_name(SAVED_AFTER)
    temporary.mkdir(parents=True, exist_ok=True)
    world, mine = distributed.world_size(), temporary / part_name(distributed.rank())
    store.record_digest(mine, write_part(mine, engine.fragments))
    dist.barrier()
    if distributed.rank() == 0:
        counters = engine.counters()
        state = store.State(SAVED_AFTER, 0, world, engine.stage, [0.0], 0, 0, counters, {}, None)
        store.describe(temporary, DIGITS, "", state)
        store.commit(temporary, world)


def differences(engine: Engine, parts: FragmentReader) -> dict[str, int]:
    """Elements that are not as in the checkpoint, by kind: of all at stage 0, else of what this rank steps."""
    found = dict.fromkeys((WEIGHT, "module", "updates", *MOMENTS), 0)

    def compare(kind: str, tensor: torch.Tensor, parameter: str, start: int = 0) -> None:
        tensor = tensor.detach().flatten()
        found[kind] += int((tensor != parts.read(kind.replace("module", WEIGHT), parameter, start, len(tensor))).sum())

    for name, p in engine.model.named_parameters():
        if engine.stage == 3:
            start = distributed.rank() * p.ds_tensor.numel()
            compare("module", p.ds_tensor[: max(0, p.ds_numel - start)], name, start)
        else:
            compare("module", p, name)
        if engine.stage == 0:
            for moment, tensor in engine.optimizer.state[p].items():
                if moment in MOMENTS:
                    compare(moment, tensor, name)
    if engine.stage:
        for fragment in engine.fragments:
            compare(fragment.kind, fragment.tensor, fragment.parameter, fragment.start)
    found["updates"] = sum(int(step != SAVED_AFTER) for step in engine.updates)
    return found


def save_all(folder: Path) -> None:
    for stage in STAGES:
        engine = new_engine(stage, seed=0)
        for step in range(SAVED_AFTER):
            train(engine, step)
        run = folder / f"{distributed.world_size()}x{stage}"
        save(engine, run)
        losses = [train(engine, step) for step in range(SAVED_AFTER, STEPS)]
        if distributed.rank() == 0:
            (run / "losses.json").write_text(json.dumps(losses))


def load_all(folder: Path) -> None:
    found = {}
    for stage in STAGES:
        engine = new_engine(stage, seed=1)
        for run in sorted(folder.glob("?x?")):
            path = run / "checkpoints" / store.folder_name(SAVED_AFTER)
            parts = store.open_parts(path)
            engine.load(parts, store.read_state(path).counters)
            opened = len(parts.opened)
            differing = differences(engine, parts)
            losses = [train(engine, step) for step in range(SAVED_AFTER, STEPS)]
            found[f"{run.name} {stage}"] = {"differing": differing, "opened": opened, "losses": losses}
    name = f"found_{distributed.world_size()}_{distributed.rank()}.json"
    (folder / name).write_text(json.dumps(found))


if __name__ == "__main__":
    distributed.connect()
    {"save": save_all, "load": load_all}[sys.argv[1]](Path(sys.argv[2]))
    dist.barrier()
    dist.destroy_process_group()
