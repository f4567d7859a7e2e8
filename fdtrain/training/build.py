"""A checked plan to a running trainer: builds every part and joins them."""

import json
import platform
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from fdtrain import distributed
from fdtrain.capacity.cost import flops
from fdtrain.checkpoint import store
from fdtrain.config import dump_config
from fdtrain.credentials import masked_values
from fdtrain.data.cache import Cache, open_cache
from fdtrain.data.dataset import write_description
from fdtrain.data.lanes import own_lanes
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.mixture import lane_order
from fdtrain.data.shards import ShardReader
from fdtrain.data.split import Split
from fdtrain.diffusion.time_sampling import TimeDensity, time_density
from fdtrain.errors import UserError
from fdtrain.evaluation.fidelity.feature_networks import open_features
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import Heartbeat, joined
from fdtrain.resilience.launcher import followed
from fdtrain.resilience.lock import held_for_all
from fdtrain.resilience.signals import answered
from fdtrain.training import callbacks
from fdtrain.training import hardware as devices
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.compilation import compile_network, worthwhile
from fdtrain.training.ema import Average
from fdtrain.training.engine import Engine
from fdtrain.training.memory import fits
from fdtrain.training.monitor import Monitor
from fdtrain.training.plan import Plan
from fdtrain.training.trainer import FLAGS, STOP, Callback, RunIdentity, Trainer
from fdtrain.training.utilisation import Utilisation

PACKAGES = ("torch", "deepspeed", "webdataset", "ema-pytorch", "numpy", "pydantic", "safetensors")


def run(plan: Plan) -> None:
    """Join the process group, build, resume if there is what to resume from, and train to the last step."""
    training = plan.config.training
    with joined(training.heartbeat_timeout_s, training.collective_timeout_s) as (device, heartbeat):
        consensus = Consensus(FLAGS, training.collective_timeout_s)

        def stop() -> None:
            consensus.raise_flag(STOP)

        with followed(stop), answered(stop), held_for_all(plan.config.folder), fits(plan.config):
            _run(plan, device, consensus, heartbeat)


def _run(plan: Plan, device: torch.device, consensus: Consensus, heartbeat: Heartbeat) -> None:
    config, spec = plan.config, plan.spec
    training, first = config.training, distributed.rank() == 0
    devices.set_tf32(training.tf32)
    if device.type == "cpu":
        devices.keep_freed_memory()
    torch.manual_seed(torch_seed(config.seed, Purpose.INIT))
    model = Model(spec, config.network.checkpointing).to(device)
    engine = Engine(model, training)
    average = Average(engine.weights, Model(spec), config.ema.decay, config.ema.warmup_power)

    path = _checkpoint_to_resume(plan)
    start = store.step_of(path) if path else 0
    code = _git_commit()
    if first:
        store.clean(config.folder)
        _write_run_files(plan, device, code)
    monitor = Monitor(config.folder, training.steps, start, first)
    monitor.text("configuration", "```yaml\n" + dump_config(config) + "```")
    accounting = _accounting(plan, device, monitor)
    compiled = _compile(plan, model, accounting.flops_per_image, device, monitor)
    parameters = sum(shape.numel() for shape in engine.shapes.values())
    monitor.say(
        f"{config.folder}: {plan.description.name}, {parameters:,} parameters, "
        f"{distributed.world_size()} x {device.type}, "
        f"{training.precision}{', compiled' if compiled else ''}, ZeRO {engine.stage}, "
        f"global batch {training.global_batch}, {accounting.flops_per_image / 1e9:.3g} GFLOP per image, "
        + (f"resuming after step {start} of {training.steps}" if path else f"{training.steps} steps")
    )

    density = time_density(config.diffusion.time_density, spec.scale)
    draws = BatchNoise(
        config.seed, training.global_batch, training.lane_images, config.diffusion.time_sampling, density, device
    )
    identity = RunIdentity(spec, plan.identity, code)
    batches, reports = partial(own_batches, plan), _reports(plan, density, monitor, device)
    together = consensus, heartbeat, accounting, plan.traced
    trainer = Trainer(config, identity, engine, average, draws, batches, monitor, reports, *together)
    if path is not None:
        trainer.load(path)
    try:
        trainer.run(start)
    finally:
        monitor.close()


def _accounting(plan: Plan, device: torch.device, monitor: Monitor) -> Utilisation:
    """Measures the devices, all at once, and warns of a precision that costs where it should save."""
    precision = plan.config.training.precision
    rate = devices.matrix_rate(device, precision)
    if distributed.rank() == 0 and (warning := devices.lacks_units(device, precision, rate)):
        monitor.say(f"fdtrain: warning: {warning}")
    whole = distributed.all_reduce_sum(torch.tensor(rate, dtype=torch.float64, device=device)).item()
    return Utilisation(flops(plan.spec).training(), distributed.world_size(), whole)


def _compile(plan: Plan, model: Model, flops_per_image: int, device: torch.device, monitor: Monitor) -> bool:
    """Whether the network is compiled now."""
    training = plan.config.training
    if not worthwhile(training, flops_per_image, device):
        if training.compile is True:
            monitor.say("fdtrain: warning: training.compile has no effect at training.zero_stage 3")
        return False
    monitor.say("compiling the network")
    failure = compile_network(model, plan.spec, training, device)
    if failure:
        monitor.say(f"fdtrain: warning: torch.compile failed, so the network is not compiled: {failure}")
    return failure is None


def own_batches(plan: Plan, start: int) -> Batches:
    """This rank's batches from step ``start`` on."""
    data, training = plan.config.data, plan.config.training
    counts = [[placed.shard.images for placed in part] for part in plan.train_shards]
    order = lane_order(counts, data.weights, training.lanes, plan.config.seed, data.shuffle_window)
    lanes = own_lanes(distributed.rank(), distributed.world_size(), training.lanes)
    shards = [placed for part in plan.train_shards for placed in part]
    keep_open = len(lanes) * order.shards_at_once
    reader = ShardReader(shards, plan.description, _cache(plan), keep_open, data.verify)
    dataset = LaneDataset(reader, order, lanes, training.lane_images, flip=data.flip, labelled=bool(plan.spec.classes))
    return Batches(dataset, start, training.steps, data.workers, data.max_broken_share)


def _cache(plan: Plan) -> Cache | None:
    data = plan.config.data
    places = [placed.place for part in plan.train_shards for placed in part]
    return open_cache(data.cache, data.cache_gib, data.fetch_timeout_s, places)


def _checkpoint_to_resume(plan: Plan) -> Path | None:
    """The newest checkpoint that is sound and fits, chosen by rank 0 for all."""
    folder = plan.config.folder
    if not plan.resume:
        return None

    def fits(path: Path) -> store.State:
        return store.check_fits(path, plan.spec, plan.identity)

    path, faults = distributed.broadcast(store.newest(folder, fits) if distributed.rank() == 0 else None)
    if path is None and faults:
        raise UserError(
            f"no checkpoint of {folder} can be used: {'; '.join(faults)}. "
            "Restore one, or delete them all to start again."
        )
    if distributed.rank() == 0:
        for fault in faults:
            print(f"fdtrain: passing over a checkpoint: {fault}", file=sys.stderr)
        if path is not None and store.SHARDS not in store.read_state(path).run:
            print(
                f"fdtrain: warning: {path.name} is of an earlier version, which did not record the shards of its data "
                "set. If they have been packed again since, the order of its images is another.",
                file=sys.stderr,
            )
    return path


def _reports(plan: Plan, density: TimeDensity, monitor: Monitor, device: torch.device) -> list[Callback]:
    config, settings, reports = plan.config, plan.config.monitor, []
    if settings.evaluate_every:
        split = Split(plan.data, config.data.test_split, _cache(plan))
        run_ = callbacks.held_out_bits(plan.spec, split, density, settings.evaluate_draws, monitor)
        reports.append(Callback(settings.evaluate_every, run_))
    if settings.frechet_every:
        network = open_features(settings.frechet_features, device)
        train = Split(plan.data, config.data.train_split, _cache(plan))
        run_ = callbacks.frechet(plan.spec, train, network, settings, config.seed, monitor)
        reports.append(Callback(settings.frechet_every, run_))
    if settings.sample_every:
        run_ = callbacks.sample_grid(plan.spec, settings, config.seed, config.folder / "samples", monitor)
        reports.append(Callback(settings.sample_every, run_))
    return reports


def _write_run_files(plan: Plan, device: torch.device, code: str | None) -> None:
    folder = plan.config.folder
    (folder / "config.yaml").write_text(dump_config(plan.config))
    write_description(folder, plan.description)
    (folder / "samples").mkdir(exist_ok=True)
    environment = {
        "fdtrain": version("fdtrain"),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "host": platform.node(),
        "device": devices.name(device),
        "processes": distributed.world_size(),
        "commit": code,
        "command": masked_values(sys.argv),
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
