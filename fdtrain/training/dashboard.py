"""How TensorBoard shows a run: its curves in a few groups, charts that belong together, settings beside results."""

from dataclasses import dataclass
from typing import Any

from fdtrain.config import Config, dump_config
from fdtrain.strict_yaml import flattened

SPEED = """images_per_second images_per_second_per_device step_seconds gflop_per_image tflops_per_device utilisation
communication data_wait save_pause memory_gib"""
"""The metrics of ``train/`` that say how fast it goes, not what is learnt."""

CHARTS = {
    "Likelihood": {
        "bits/dim, training batches": "train/bits_per_dim$",
        "bits/dim, held-out images, averaged weights": "(?!train/).*/bits_per_dim$",
        "parts of the bound by tenth of the time": "integrand/",
    },
    "Samples": {"Frechet distance": "frechet/"},
    "Optimisation": {
        "gradient norm": "train/gradient_norm$",
        "learning rate": "train/lr$",
        "skipped steps, broken samples": "train/(skipped_steps|broken_samples)$",
    },
    "Speed": {
        "images/s": "speed/images_per_second$",
        "shares": "speed/(utilisation|communication|data_wait)$",
        "memory, GiB": "speed/memory_gib$",
    },
}
"""Charts of the tab of custom scalars by title, in categories; each has the tags that its expression matches."""

SETTINGS = """network.name network.class_conditional network.dropout diffusion.predictor diffusion.interval
diffusion.time_density diffusion.time_sampling diffusion.weighting diffusion.decoder training.optimizer training.lr
training.muon_lr training.global_batch training.steps training.warmup_steps training.decay training.weight_decay
training.grad_clip training.precision ema.decay"""
"""The keys of the configuration that are hyperparameters. Those of every network alone: TensorBoard takes the columns
of its table from one run."""


@dataclass(frozen=True)
class Dashboard:
    """What is told of a run at its beginning: its ``config`` as YAML, and its hyperparameters, beside which stand the
    last values of the tags ``metrics``."""

    config: str
    hyperparameters: dict[str, float | str]
    metrics: list[str]


def dashboard(config: Config, dataset: str, parameters: int, features: str | None) -> Dashboard:
    """Of a run on a data set, with so many parameters, and the named features where it measures Frechet distances."""
    settings = flattened(config.model_dump(mode="json"))
    hyperparameters = {"dataset": dataset, "parameters": parameters, "seed": config.seed}
    hyperparameters |= {key: _value(settings.get(key)) for key in SETTINGS.split()}
    metrics = [f"{config.data.test_split}/bits_per_dim"] if config.monitor.evaluate_every else []
    metrics += ["train/bits_per_dim", *([f"frechet/{features}"] if features else [])]
    return Dashboard(dump_config(config), hyperparameters, metrics)


def tag(name: str) -> str:
    """The tag ``GROUP/NAME`` of a metric of the log: ``train`` has too many for one group."""
    prefix, _, metric = name.partition("/")
    if prefix == "train" and metric.startswith("integrand/"):
        return metric
    return f"speed/{metric}" if prefix == "train" and metric in SPEED.split() else name


def _value(value: Any) -> float | str:
    """A column holds numbers or texts."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
