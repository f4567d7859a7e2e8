"""How TensorBoard shows a run: its curves in a few groups, charts that belong together, settings beside results."""

from dataclasses import dataclass
from typing import Any

from fdtrain.config import Config, dump_config

SPEED = (
    "images_per_second",
    "images_per_second_per_device",
    "step_seconds",
    "gflop_per_image",
    "tflops_per_device",
    "utilisation",
    "communication",
    "data_wait",
    "save_pause",
    "memory_gib",
)
"""The metrics of ``train/`` that say how fast it goes, not what is learnt."""

LAYOUT = {
    "Likelihood": {
        "bits/dim, training batches": ["Multiline", ["train/bits_per_dim$"]],
        "bits/dim, held-out images, averaged weights": ["Multiline", ["(?!train/).*/bits_per_dim$"]],
        "parts of the bound by tenth of the time": ["Multiline", ["integrand/"]],
    },
    "Samples": {"Frechet distance": ["Multiline", ["frechet/"]]},
    "Optimisation": {
        "gradient norm": ["Multiline", ["train/gradient_norm$"]],
        "learning rate": ["Multiline", ["train/lr$"]],
        "skipped steps, broken samples": ["Multiline", ["train/(skipped_steps|broken_samples)$"]],
    },
    "Speed": {
        "images/s": ["Multiline", ["speed/images_per_second$"]],
        "shares": ["Multiline", ["speed/(utilisation|communication|data_wait)$"]],
        "memory, GiB": ["Multiline", ["speed/memory_gib$"]],
    },
}
"""Charts of the tab of custom scalars by title, in categories; each has the tags that its expressions match."""

SETTINGS = {
    "network": ("name", "class_conditional", "dropout"),
    "diffusion": ("predictor", "interval", "time_density", "time_sampling", "weighting", "decoder"),
    "training": (
        "optimizer",
        "lr",
        "muon_lr",
        "global_batch",
        "steps",
        "warmup_steps",
        "decay",
        "weight_decay",
        "grad_clip",
        "precision",
    ),
    "ema": ("decay",),
}
"""The keys of the configuration that are hyperparameters, by section. Those of every network alone: TensorBoard takes
the columns of its table from one run."""


@dataclass(frozen=True)
class Dashboard:
    """What is told of a run at its beginning.

    Args:
        config: the configuration as YAML.
        hyperparameters: by name.
        metrics: the tags whose last values stand beside them.
    """

    config: str
    hyperparameters: dict[str, float | str]
    metrics: list[str]


def dashboard(config: Config, dataset: str, parameters: int, features: str | None) -> Dashboard:
    """Of a run on a data set, with so many parameters, and the named features where it measures Frechet distances."""
    settings, sections = config.model_dump(mode="json"), {}
    for section, keys in SETTINGS.items():
        sections |= {f"{section}.{key}": _value(settings[section].get(key)) for key in keys}
    hyperparameters = {"dataset": dataset, "parameters": parameters, **sections, "seed": config.seed}
    metrics = [f"{config.data.test_split}/bits_per_dim"] if config.monitor.evaluate_every else []
    metrics += ["train/bits_per_dim", *([f"frechet/{features}"] if features else [])]
    return Dashboard(dump_config(config), hyperparameters, metrics)


def tag(name: str) -> str:
    """The tag ``GROUP/NAME`` of a metric of the log: ``train`` has too many for one group."""
    prefix, _, metric = name.partition("/")
    if prefix == "train" and metric.startswith("integrand/"):
        return metric
    return f"speed/{metric}" if prefix == "train" and metric in SPEED else name


def _value(value: Any) -> float | str:
    """A column holds numbers or texts."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
