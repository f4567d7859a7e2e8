"""What a run shows of itself at intervals, from the averaged weights: bits/dim, Frechet distance, sheets of samples.

The ranks share the work. Nothing here touches the training stream: the draws have purposes of their own, and
the averaged model is not the one that trains.
"""

from pathlib import Path

from fdtrain import distributed
from fdtrain.config import MonitorConfig as Settings
from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import estimate
from fdtrain.diffusion.solvers import GRID
from fdtrain.errors import UserError
from fdtrain.evaluation import image_sets, pictures, samples
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import frechet_distance
from fdtrain.evaluation.measure import measure
from fdtrain.evaluation.nll import Likelihood
from fdtrain.evaluation.samples import Sampler
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.training.monitor import Monitor

REFERENCE_IMAGES = 10_000
"""Most images of the split that samples are compared with while training, spread over it."""


def held_out_bits(split: Split, draws: int, batch: int, monitor: Monitor):
    """A report that evaluates the bound over the whole split."""

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


def monitor_sampler(settings: Settings, spec: ModelSpec) -> Sampler:
    """How samples of a model are drawn while training.

    Raises:
        UserError: its grid is wrong.
    """
    sampler = Sampler(settings.sample_solver, settings.sample_grid or GRID, settings.sample_steps)
    try:
        sampler.times(spec)
    except ValueError as error:
        raise UserError(f"monitor.sample_grid: {error}.") from error
    return sampler


def frechet(
    split: Split, network: FeatureNetwork, sampler: Sampler, count: int, batch: int, seed: int, monitor: Monitor
):
    """A report that measures how far samples are from the training images, on the same draws each time."""
    reference = None

    def report(step: int, model: Model) -> None:
        nonlocal reference
        device = next(model.parameters()).device
        drawn = image_sets.of_model(model, sampler, seed, count)
        if reference is None:
            images = image_sets.spread(image_sets.of_split(split), REFERENCE_IMAGES)
            reference = measure(network, images, images.count, batch, device).moments
        found = measure(network, drawn, drawn.count, batch, device).moments
        value = frechet_distance(found, reference)
        monitor.log(step, {network.identity.name: value}, prefix="frechet")
        size = f"{drawn.count} images, {sampler.nfe} evaluations, EMA"
        monitor.say(f"step {step}  {network.title} {value:.3f} to {split.name} ({size})")

    return report


def sample_sheet(sampler: Sampler, count: int, batch: int, seed: int, folder: Path, monitor: Monitor):
    """A report that samples a sheet and its denoising path, as PNG and in TensorBoard."""

    def report(step: int, model: Model) -> None:
        device, spec = next(model.parameters()).device, model.spec
        mine, times = distributed.share(count), sampler.times(spec)
        labels = [i % len(spec.classes) for i in mine] if spec.classes else None
        drawn = samples.denoising_paths(model, mine, labels, times, sampler.solver, seed, batch)
        path = samples.to_pixels(distributed.gather(drawn, count, device), spec.levels)
        if distributed.rank() != 0:
            return
        images, denoising = pictures.sheet(path[:, -1]), pictures.sheet(path[:8].flatten(0, 1), path.shape[1])
        about = {"step": step, "images": count, "seed": seed, **sampler.describe()}
        with monitor.tolerant():
            pictures.save_png(images, folder / f"step_{step:08d}.png", about)
            about |= {"images": len(path[:8]), "times": samples.path_times(times)}
            pictures.save_png(denoising, folder / f"step_{step:08d}_path.png", about)
        monitor.image(step, "samples", images)
        monitor.image(step, "denoising_path", denoising)

    return report
