"""What a run shows of itself at intervals, from the averaged weights: bits/dim, Frechet distance, sheets of samples.

The ranks share the work. Nothing here touches the training stream: the draws have purposes of their own, and
the averaged model is not the one that trains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fdtrain import distributed
from fdtrain.config import Config, MonitorConfig, settings_of
from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import estimate
from fdtrain.evaluation import image_sets, pictures
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import frechet_distance
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.evaluation.measure import measure
from fdtrain.evaluation.samples import Sampler, to_pixels
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.plugins import CALLBACKS
from fdtrain.training.monitor import Monitor

REFERENCE_IMAGES = 10_000
"""Most images of the split that samples are compared with while training, spread over it."""


Report = Callable[[int, Model], None]
"""What is done after a step, with the averaged model, on every rank together."""


@dataclass(frozen=True)
class Watched:
    """A run under way, as what makes its reports sees it.

    ``split`` opens a split of its data, ``batch`` is the number of images that fit in one pass, and ``features`` are
    those of ``monitor.frechet_features`` where distances are measured.
    """

    config: Config
    spec: ModelSpec
    split: Callable[[str], Split]
    features: FeatureNetwork | None
    batch: int
    monitor: Monitor

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted keys, without credentials."""
        return settings_of(self.config)


def reports(run: Watched) -> list[tuple[int, Report]]:
    """What a configuration asks for, with the steps between."""
    settings = run.config.monitor
    due = [
        ("bits_per_dim", settings.evaluate_every, {}),
        ("frechet", settings.frechet_every, {}),
        ("samples", settings.sample_every, {}),
        # Last, to see what those have logged.
        *((own.name, own.every, own.options) for own in settings.callbacks),
    ]
    return [(every, CALLBACKS[name](run, **options)) for name, every, options in due if every]


def held_out_bits(run: Watched) -> Report:
    """A report that evaluates the bound over the whole held-out split."""
    assert run.config.data.test_split is not None
    split, draws = run.split(run.config.data.test_split), run.config.monitor.evaluate_draws
    batch, monitor = run.batch, run.monitor

    def report(step: int, model: Model) -> None:
        device = next(model.parameters()).device
        mine = distributed.share(len(split))
        values = Likelihood(model, split, batch=batch).elbo(mine, draws)
        result = estimate(distributed.gather(values, len(split), device))
        metrics = {"bits_per_dim": result.mean, "standard_error": result.error_images}
        monitor.log(step, metrics | model.spec.bound.ends(), prefix=split.name)
        value = f"{result.mean:.4f} +- {result.error_images:.4f} bits/dim"
        monitor.say(f"step {step}  {split.name} {value} (ELBO, {model.spec.bound.describe()}, EMA)")

    return report


def monitor_sampler(settings: MonitorConfig, spec: ModelSpec) -> Sampler:
    """How samples of a model are drawn while training. Raises UserError if it cannot be sampled so."""
    how = settings.sample_solver, settings.sample_grid, settings.sample_steps
    return Sampler.checked(spec, None, *how, prefix="monitor.sample_")


def frechet(run: Watched) -> Report:
    """A report that measures how far samples are from the training images, on the same draws each time."""
    assert run.features is not None
    split, network, monitor = run.split(run.config.data.train_split), run.features, run.monitor
    sampler, count = monitor_sampler(run.config.monitor, run.spec), run.config.monitor.frechet_images
    reference, batch = None, run.batch

    def report(step: int, model: Model) -> None:
        nonlocal reference
        device = next(model.parameters()).device
        drawn = image_sets.of_model(model, sampler, run.config.seed, count)
        if reference is None:
            images = image_sets.of_split(split, REFERENCE_IMAGES)
            reference = measure(network, images, batch, device).moments
        found = measure(network, drawn, batch, device).moments
        value = frechet_distance(found, reference)
        monitor.log(step, {network.identity.name: value}, prefix="frechet")
        size = f"{drawn.count} images, {sampler.nfe} evaluations, EMA"
        monitor.say(f"step {step}  {network.title} {value:.3f} to {split.name} ({size})")

    return report


def sample_sheet(run: Watched) -> Report:
    """A report that samples a sheet and its denoising path, as PNG and in TensorBoard."""
    sampler, count = monitor_sampler(run.config.monitor, run.spec), run.config.monitor.sample_images
    batch, seed, folder, monitor = run.batch, run.config.seed, run.config.folder / "samples", run.monitor

    def report(step: int, model: Model) -> None:
        device, spec = next(model.parameters()).device, model.spec
        drawn = sampler.paths(model, distributed.share(count), seed, batch)
        path = to_pixels(distributed.gather(drawn, count, device), spec.levels)
        if distributed.rank() != 0:
            return
        images, denoising = pictures.sheet(path[:, -1]), pictures.sheet(path[:8].flatten(0, 1), path.shape[1])
        about = {"step": step, "images": count, "seed": seed, **sampler.describe()}
        with monitor.tolerant():
            pictures.save_png(images, folder / f"step_{step:08d}.png", about)
            about |= {"images": len(path[:8]), "times": sampler.path_times(spec)}
            pictures.save_png(denoising, folder / f"step_{step:08d}_path.png", about)
        monitor.image(step, "samples", images)
        monitor.image(step, "denoising_path", denoising)

    return report


CALLBACKS.update(bits_per_dim=held_out_bits, frechet=frechet, samples=sample_sheet)
