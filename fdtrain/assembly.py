"""A checked plan to a running trainer: builds every part and joins them."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from fdtrain import snapshots
from fdtrain.config import dump_config
from fdtrain.data.cache import Cache, open_cache
from fdtrain.data.dataset import write_description
from fdtrain.data.lanes import own_lanes
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.mixture import lane_order
from fdtrain.data.shards import ShardReader
from fdtrain.data.split import Split
from fdtrain.diffusion.time_sampling import TimeDensity, time_density
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, parameter_count
from fdtrain.preparation import Plan
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.training import checkpoint
from fdtrain.training import engine as ds
from fdtrain.training.draws import LaneDraws
from fdtrain.training.ema import make_ema
from fdtrain.training.monitor import Monitor
from fdtrain.training.trainer import Report, Trainer

PACKAGES = ("torch", "deepspeed", "webdataset", "ema-pytorch", "numpy", "pydantic", "safetensors")


def run(plan: Plan) -> None:
    """Join the process group, build, resume if there is what to resume from, and train to the last step."""
    with ds.peers():
        _run(plan)


def _run(plan: Plan) -> None:
    config, spec = plan.config, plan.spec
    training, first = config.training, ds.rank() == 0
    device = ds.connect()
    torch.manual_seed(torch_seed(config.seed, Purpose.INIT))
    model = Model(spec, config.network.checkpointing).to(device)
    ema = make_ema(model, config.ema.decay, config.ema.warmup_power)
    engine = ds.Engine(model, training)

    path, state = _checkpoint_to_resume(plan)
    start = state.step if state else 0
    if first:
        _write_run_files(plan, device)
    monitor = Monitor(config.folder, training.steps, start, first)
    monitor.text("configuration", "```yaml\n" + dump_config(config) + "```")
    monitor.say(
        f"{config.folder}: {plan.description.name}, {parameter_count(model):,} parameters, "
        f"{ds.world_size()} x {device.type}, "
        f"{training.precision}, ZeRO {training.zero_stage}, global batch {training.global_batch}, "
        + (f"resuming after step {start} of {training.steps}" if path else f"{training.steps} steps")
    )

    density = time_density(config.diffusion.time_density, spec.scale)
    draws = LaneDraws(
        config.seed, training.global_batch, training.lane_images, config.diffusion.time_sampling, density, device
    )
    reports = _reports(plan, ema.ema_model, density, monitor)
    trainer = Trainer(config, spec, plan.identity, engine, ema, draws, monitor, reports)
    if path is not None:
        trainer.resume(path, state)
    try:
        trainer.run(own_batches(plan, start), start)
    finally:
        monitor.close()


def own_batches(plan: Plan, start: int) -> Batches:
    """This rank's batches from step ``start`` on."""
    data, training = plan.config.data, plan.config.training
    counts = [[placed.shard.images for placed in part] for part in plan.train_shards]
    order = lane_order(counts, data.weights, training.lanes, plan.config.seed, data.shuffle_window)
    lanes = own_lanes(ds.rank(), ds.world_size(), training.lanes)
    shards = [placed for part in plan.train_shards for placed in part]
    keep_open = len(lanes) * order.shards_at_once
    reader = ShardReader(shards, plan.description, _cache(plan), keep_open, data.verify)
    dataset = LaneDataset(reader, order, lanes, training.lane_images, flip=data.flip, labelled=bool(plan.spec.classes))
    return Batches(dataset, start, training.steps, data.workers, data.max_broken_share)


def _cache(plan: Plan) -> Cache | None:
    data = plan.config.data
    places = [placed.place for part in plan.train_shards for placed in part]
    return open_cache(data.cache, data.cache_gib, data.fetch_seconds, places)


def _checkpoint_to_resume(plan: Plan) -> tuple[Path | None, checkpoint.State | None]:
    """The newest sound checkpoint, chosen by rank 0 for all."""
    if not plan.resume:
        return None, None
    path, faults = ds.broadcast(checkpoint.newest_sound(plan.config.folder) if ds.rank() == 0 else None)
    if ds.rank() == 0:
        for fault in faults:
            print(f"fdtrain: passing over a damaged checkpoint: {fault}", file=sys.stderr)
    if path is None:
        if faults:
            raise UserError(
                f"no checkpoint of {plan.config.folder} is sound. Restore one, or delete them all to start again."
            )
        return None, None
    zero_stage = plan.config.training.zero_stage
    return path, checkpoint.check_fits(path, plan.spec, plan.identity, zero_stage, ds.world_size())


def _reports(plan: Plan, model: Model, density: TimeDensity, monitor: Monitor) -> list[Report]:
    config, settings, reports = plan.config, plan.config.monitor, []
    if settings.evaluate_every:
        split = Split(plan.data, config.data.test_split, _cache(plan))
        run_ = snapshots.held_out_bits(model, plan.spec, split, density, settings.evaluate_draws, monitor)
        reports.append(Report(settings.evaluate_every, run_))
    if settings.sample_every:
        run_ = snapshots.sample_grid(model, plan.spec, settings, config.seed, config.folder / "samples", monitor)
        reports.append(Report(settings.sample_every, run_))
    return reports


def _write_run_files(plan: Plan, device: torch.device) -> None:
    folder = plan.config.folder
    (folder / "config.yaml").write_text(dump_config(plan.config))
    write_description(folder, plan.description)
    (folder / "samples").mkdir(exist_ok=True)
    environment = {
        "fdtrain": version("fdtrain"),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "processes": ds.world_size(),
        "commit": _git_commit(),
        "command": sys.argv,
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")


def _git_commit() -> str | None:
    """The code's commit, marked if it was changed since; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
