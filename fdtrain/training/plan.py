"""Everything about a run that can be known, and be wrong, before any process group exists or DeepSpeed is imported."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fdtrain import distributed, plugins
from fdtrain.capacity.layout import RunLayout, run_layout
from fdtrain.capacity.spec import model_spec
from fdtrain.checkpoint import soundness, store
from fdtrain.config import Config, ConfigFiles, load_config, settings_of
from fdtrain.data.dataset import DatasetDescription, fingerprint
from fdtrain.data.mixture import DataSets, open_data
from fdtrain.data.shards import ChainedShards
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.feature_networks import FeatureNetwork, open_features
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.training import callbacks, init_from
from fdtrain.training.hardware import check_precision
from fdtrain.training.monitor import writing
from fdtrain.training.profile import parse_steps

FIXED = (
    "seed",
    "data.flip",
    "data.shuffle_window",
    "network.label_dropout",
    "diffusion.time_density",
    "diffusion.time_sampling",
    "diffusion.strata",
    "diffusion.soft_truncation_k",
    "diffusion.weighting",
    "training.global_batch",
    "training.lanes",
    store.OPTIMIZER,
    "training.init_from",
    "ema.decay",
    "ema.warmup_power",
)
"""The keys that a run may not change when it resumes, besides its model's and its data set's: the method, the order of
the data, and what the averages are of (docs/checkpoints.md)."""


@dataclass(frozen=True)
class Plan:
    """A checked run."""

    config: Config
    data: DataSets
    train_shards: ChainedShards
    spec: ModelSpec
    layout: RunLayout
    features: FeatureNetwork | None
    """By which Frechet distances are measured while training, on this rank's device."""
    resume: bool
    traced: range = range(0)

    @property
    def description(self) -> DatasetDescription:
        return self.data.description

    @cached_property
    def remote(self) -> bool:
        """Whether shards must be fetched. Those that are elsewhere than their description are looked at one by one."""
        return bool(self.train_shards.remote_lengths.size)

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted keys, as a checkpoint has it."""
        return settings_of(self.config)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that a run may not change when it resumes: they fix what it is, step by step."""
        config = self.config
        return {
            "dataset": self.description.name,
            "images": int(self.train_shards.images.sum()),
            store.SHARDS: [
                fingerprint(shards.shards, part.description.members)
                for part, shards in zip(self.data.parts, self.train_shards.parts, strict=True)
            ],
            "data.weights": config.data.weights,
            **{key: value for key, value in self.settings.items() if key in FIXED},
            **{f"plugins.{name}": sha256 for name, sha256 in config.code.items()},
            # An average that began later, or of another length, would not be the one of its name. None may end.
            **({"ema.lengths": list(config.ema.lengths)} if config.ema.lengths else {}),
        }


def prepare(
    files: ConfigFiles,
    overrides: list[str],
    resume: bool,
    profile: str | None = None,
    allow_code: Sequence[str | Path] = (),
) -> Plan:
    """Read and check configuration, data set, model, output folder, and the checkpoint to resume from.

    Args:
        allow_code: files that are executed before the configuration is read (plugins.py).

    Raises:
        UserError: whatever is wrong, on every rank alike.
    """
    distributed.check_launcher()
    plugins.execute(allow_code)
    config = load_config(files, overrides)
    if resume and "lanes" not in config.training.model_fields_set:
        # The default may be another than when the run began.
        config = load_config(files, [*overrides, *_recorded_lanes(config.folder)])
    layout = run_layout(config.training, distributed.world_size(), distributed.rank())
    traced = parse_steps(profile, config.training.steps)
    check_precision(config.training, distributed.device())
    data = open_data(config.data.paths, config.data.allow_pipe, config.data.fetch_timeout_s)
    shards = data.split(config.data.train_split)
    if (held_out := config.data.test_split) is not None:
        if held_out not in data.description.splits:
            there = excerpt(", ".join(data.description.splits))
            raise UserError(
                f"data.test_split: '{data.description.name}' has no split '{held_out}' (it has: {there}). To train "
                "without held-out images, set data.test_split and monitor.evaluate_every to null; to hold some out, "
                "pack the images again with fdtrain pack --holdout N."
            )
        data.split(held_out)
    elif config.monitor.evaluate_every:
        raise UserError("monitor.evaluate_every needs held-out images: set data.test_split, or evaluate_every to null.")
    spec = model_spec(config, data.description)
    with torch.device("meta"):
        Model(spec)
    callbacks.monitor_sampler(config.monitor, spec)
    features = None
    if config.monitor.frechet_every:
        device = distributed.device()
        features = open_features(config.monitor.frechet_features, device)
        features.run(torch.zeros(1, *spec.shape, dtype=torch.uint8, device=device))
    plan = Plan(config, data, shards, spec, layout, features, resume, traced)
    with writing(config.folder):
        config.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.folder, buffering=0) as file:
            # An empty file fits on a full disk.
            file.write(b"fdtrain\n")
    existing = store.committed(config.folder)
    if existing and not resume:
        raise UserError(
            f"{config.folder} already holds a run ({existing[0].name}). "
            "Add --resume auto to go on with it (in Python resume=True), or choose another 'name'."
        )
    _check_some_fit(existing, plan)
    if config.training.init_from is not None and not existing:
        init_from.read(config.training.init_from, spec)
    return plan


def _recorded_lanes(folder: Path) -> list[str]:
    """A run's own lanes, as an override."""
    for path in store.committed(folder):
        with suppress(UserError, KeyError):
            return [f"training.lanes={store.read_state(path).run['training.lanes']}"]
    return []


def _check_some_fit(existing: list[Path], plan: Plan) -> None:
    """The newest of the checkpoints whose description can be read must be the run's.

    The one to resume from is chosen later, in build.py: only once the folder is locked can no other job add one.
    """
    for path in existing:
        try:
            soundness.check_same_run(path, plan.spec, plan.identity)
            return
        except soundness.OtherRun:
            raise
        except UserError:
            # Told in build.py.
            continue
