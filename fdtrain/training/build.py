"""A checked plan to a running trainer: builds every part and joins them."""

import json
import logging
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fdtrain import distributed, files, lock, plugins
from fdtrain.capacity.estimate import flops
from fdtrain.checkpoint import soundness, store
from fdtrain.config import dump_config
from fdtrain.credentials import masked_values
from fdtrain.data.cache import Cache, open_cache
from fdtrain.data.dataset import write_description
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.mixture import lane_order
from fdtrain.data.shards import ShardReader
from fdtrain.data.split import Split
from fdtrain.diffusion.interval import CLOSED
from fdtrain.errors import UserError
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.resilience.consensus import Consensus
from fdtrain.resilience.heartbeat import process_group
from fdtrain.resilience.launcher import watched
from fdtrain.resilience.signals import handled
from fdtrain.resilience.verdict import Limits
from fdtrain.training import callbacks, hardware, init_from, memory
from fdtrain.training.batch_noise import BatchNoise, DrawnSteps, PassInputs
from fdtrain.training.compilation import compile_networks
from fdtrain.training.ema import Average
from fdtrain.training.engine import Engine
from fdtrain.training.metrics import MetricSums, Stopwatch, Utilisation
from fdtrain.training.monitor import Monitor, writing
from fdtrain.training.plan import Plan
from fdtrain.training.profile import Profiler
from fdtrain.training.state import TrainState
from fdtrain.training.trainer import FLAGS, STOP, Launch, Trainer

logger = logging.getLogger(__name__)

PACKAGES = ("deepspeed", "ema-pytorch", "numpy", "pydantic", "safetensors")


Signals = Callable[[Callable[[], None], str], AbstractContextManager[None]]
"""Who answers signals while a run trains: of :mod:`fdtrain.resilience.signals`."""


def carry_out(plan: Plan, signals: Signals = handled) -> None:
    """Join the process group, and with signals answered and the run's folder locked build, resume if there is what to
    resume from, and train to the last step."""
    training = plan.config.training
    patience = training.collective_timeout_s
    with process_group(Limits(training.heartbeat_timeout_s, patience, joining=patience)) as (device, heartbeat):
        consensus = Consensus(FLAGS, patience)
        effect = f"stopping after {'this' if plan.layout.world_size == 1 else 'the next'} step; again: at once"
        stop = partial(consensus.raise_flag, STOP)
        with (
            # While it is waited for, a signal ends this process: the context around this one answers it.
            _held_for_all(plan.config.folder, partial(consensus.raise_flag, lock.GONE)),
            watched(stop),
            signals(stop, effect),
            memory.fitting(f"a pass of {plan.layout.micro_batch} images", memory.TRAINING),
        ):
            _check_shards(plan)
            build(plan, Launch(device, consensus, heartbeat), checkpoint_to_resume(plan)).train()


@contextmanager
def _held_for_all(folder: Path, gone: Callable[[], None]) -> Iterator[None]:
    """Rank 0 holds the lock of the run's folder; every rank raises UserError if it cannot."""
    with ExitStack() as stack:
        with distributed.told_to_all():
            if distributed.rank() == 0:
                stack.enter_context(lock.held(folder, gone=gone))
        yield


def _check_shards(plan: Plan) -> None:
    """Look for the shards of the run, each rank for its share of them.

    Raises:
        UserError: on every rank, if one is missing, not in full length, or of another data set.
    """
    splits = [split for split in (plan.config.data.train_split, plan.config.data.test_split) if split is not None]
    with distributed.told_to_all():
        for part in plan.data.parts:
            part.check(splits, distributed.rank(), distributed.world_size())


def build(plan: Plan, launch: Launch, checkpoint: Path | None = None) -> Trainer:
    """The trainer of a checked plan, at step 0 or at that of a checkpoint of its run."""
    config, spec, device = plan.config, plan.spec, launch.device
    training = config.training
    hardware.set_tf32(training.tf32)
    # Every pass has the same shape: the first of them times the algorithms that there are for it.
    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        hardware.keep_freed_memory()
    torch.manual_seed(torch_seed(config.seed, Purpose.INIT))
    model = Model(spec, config.network.checkpointing).to(device)
    started = _start_from(plan, model) if checkpoint is None else None
    engine = Engine(model, training, plan.layout)
    averages = [Average(engine.weights, None, config.ema.decay, config.ema.warmup_power)]
    averages += [Average(engine.weights, length) for length in config.ema.lengths]

    code = _git_commit()
    _write_run_files(plan, device, code, started)
    parameters = sum(shape.numel() for shape in engine.shapes.values())
    features = plan.features.identity.name if plan.features else "none"
    about = {"dataset": plan.description.name, "parameters": parameters, "features": features}
    monitor = Monitor(config, plan.layout.rank == 0, about)
    utilisation = _measure(plan, device, monitor)
    averaged = Model(spec).eval().requires_grad_(False)
    work = utilisation.flops_per_image
    compiled = compile_networks(model, averaged, training, plan.layout, work, device, monitor.say)
    profiler = Profiler(config.folder / "profile", plan.traced, device, Stopwatch())
    noise = BatchNoise.of(config, spec)
    sums = MetricSums(device, noise.density)
    state = TrainState(engine, averages, sums, plan.layout, plan.identity, code)
    monitor.say(
        f"{config.folder}: {plan.description.name}, {parameters:,} parameters, "
        f"{plan.layout.world_size} x {device.type}, "
        f"{training.precision}{', compiled' if compiled else ''}, ZeRO {engine.stage}, "
        f"global batch {training.global_batch}, {work / 1e9:.3g} GFLOP per image, "
        f"{training.steps} steps{'' if spec.bound.interval == CLOSED else f', bound: {spec.bound.describe()}'}"
    )
    if engine.matrices:
        count = sum(engine.shapes[name].numel() for name in engine.matrices)
        monitor.say(f"Muon steps {len(engine.matrices)} matrices, {count:,} of the parameters; AdamW the rest")
    if started:
        found, left = len(started["matched"]), len(started["left"])
        monitor.say(f"training.init_from: {found} of {found + left} tensors start as they are in {started['model']}")
    batches, reports = partial(own_batches, plan), _reports(plan, monitor)
    trainer = Trainer(config, launch, state, monitor, profiler, utilisation, averaged, noise, batches, reports)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    return trainer


def _start_from(plan: Plan, model: Model) -> dict[str, Any] | None:
    """Give a new run's model the weights that it is to start from, the same on every rank."""
    path = plan.config.training.init_from
    if path is None:
        return None
    weights, report = init_from.read(path, plan.spec)
    if report["weights_sha256"] != distributed.broadcast(report["weights_sha256"]):
        raise UserError(f"training.init_from: {path} changed while it was read. Name one of its checkpoints.")
    model.load_state_dict(weights, strict=False)
    return report


def _measure(plan: Plan, device: torch.device, monitor: Monitor) -> Utilisation:
    """Measures the devices, all at once, and warns of different ones and of a precision that costs where it should
    save."""
    if len(kinds := Counter(distributed.of_all(hardware.name(device)))) > 1:
        names = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
        monitor.say(f"fdtrain: warning: the devices of this launch differ ({names}): every step waits for the slowest.")
    precision = plan.config.training.precision
    rate = hardware.matrix_rate(device, precision)
    if distributed.rank() == 0 and (warning := hardware.lacks_units(device, precision, rate)):
        monitor.say(f"fdtrain: warning: {warning}")
    whole = distributed.all_reduce_sum(torch.tensor(rate, dtype=torch.float64, device=device)).item()
    return Utilisation(flops(plan.spec), plan.layout.world_size, whole)


def own_batches(plan: Plan, noise: BatchNoise, start: int) -> Batches[list[PassInputs]]:
    """This rank's batches from step ``start`` on, with their draws."""
    data, training = plan.config.data, plan.config.training
    counts = [part.images for part in plan.train_shards.parts]
    order = lane_order(counts, data.weights, training.lanes, plan.config.seed, data.shuffle_window)
    lanes = plan.layout.own_lanes
    keep_open = len(lanes) * order.shards_at_once
    reader = ShardReader(plan.train_shards, plan.description, _cache(plan), keep_open, data.verify)
    images = LaneDataset(reader, order, lanes, training.lane_images, flip=data.flip, labelled=bool(plan.spec.classes))
    drawn = DrawnSteps(images, noise, plan.layout.pass_lanes)
    return Batches(drawn, start, training.steps, data.workers, data.max_broken_share)


def _cache(plan: Plan) -> Cache | None:
    data = plan.config.data
    return open_cache(data.cache, data.cache_gib, data.fetch_timeout_s, plan.remote)


def checkpoint_to_resume(plan: Plan) -> Path | None:
    """The newest checkpoint that is sound. The ranks share the work of finding out.

    Raises:
        UserError: none is, or it is of another run.
    """
    folder = plan.config.folder
    if not plan.resume:
        return None
    candidates = distributed.found_by_first(partial(store.committed, folder))
    path, faults = soundness.newest(candidates, together=True)
    if path is None:
        if faults:
            raise UserError(
                f"no checkpoint of {folder} can be used: {'; '.join(faults)}. "
                "Restore one, or delete them all to start again."
            )
        return None
    state = soundness.check_same_run(path, plan.spec, plan.identity)
    if distributed.rank() == 0:
        for fault in faults:
            logger.info("passing over a checkpoint: %s", fault)
        for change in soundness.changes(path, plan.settings):
            logger.info("changed since %s: %s", path.name, change)
        if store.SHARDS not in state.run:
            logger.warning(
                "warning: %s is of an earlier version, which did not record the shards of its data set. If they have "
                "been packed again since, the order of its images is another.",
                path.name,
            )
    return path


def _reports(plan: Plan, monitor: Monitor) -> list[tuple[int, callbacks.Report]]:
    def split(name: str) -> Split:
        return Split(plan.data, name, _cache(plan))

    # What fits in training fits here too, and is the shape that is compiled.
    batch = plan.layout.micro_batch
    return callbacks.reports(callbacks.Watched(plan.config, plan.spec, split, plan.features, batch, monitor))


def _write_run_files(plan: Plan, device: torch.device, code: str | None, started: dict[str, Any] | None) -> None:
    """Write what describes the run into its folder; every rank raises UserError if it cannot."""
    folder = plan.config.folder
    if plan.config.code != distributed.broadcast(plan.config.code):
        raise UserError(f"the files of plugins are not the same on every host: {', '.join(plan.config.code)}.")
    environment = {
        "fdtrain": version("fdtrain"),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        # With what it is built for, which not every package says.
        "torch": torch.__version__,
        "host": platform.node(),
        "device": hardware.name(device),
        "processes": plan.layout.world_size,
        "commit": code,
        "command": masked_values(sys.argv),
        **({"plugins": plan.config.code} if plan.config.code else {}),
    }
    with distributed.told_to_all(), writing(folder):
        if plan.layout.rank == 0:
            store.clean(folder)
            files.write_text(folder / "config.yaml", dump_config(plan.config))
            write_description(folder, plan.description)
            (folder / "samples").mkdir(exist_ok=True)
            plugins.save_copies(plan.config.code, folder)
            files.write_text(folder / "environment.json", json.dumps(environment, indent=1) + "\n")
            if started is not None:
                files.write_text(folder / init_from.FILE, json.dumps(started, indent=1) + "\n")
            elif plan.config.training.init_from is None:
                # Of a start that left no checkpoint.
                (folder / init_from.FILE).unlink(missing_ok=True)


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
