"""What a run shows of itself at intervals, from the averaged weights: held-out bits/dim, sample grids.

The ranks share the work. Nothing here touches the training stream: the draws have purposes of their own, and
the averaged model is not the one that trains.
"""

from pathlib import Path

import torch

from fdtrain.config import Monitor as Settings
from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import estimate
from fdtrain.diffusion.solvers import time_grid
from fdtrain.diffusion.time_sampling import TimeDensity
from fdtrain.evaluation import nll, samples
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.training import engine as ds
from fdtrain.training.monitor import Monitor


def _share(count: int) -> range:
    """This rank's part of ``range(count)``."""
    rank, world = ds.rank(), ds.world_size()
    return range(count * rank // world, count * (rank + 1) // world)


def _gather(part: torch.Tensor, mine: range, count: int, device: torch.device) -> torch.Tensor:
    """All ranks' parts, in order, on every rank."""
    whole = torch.zeros((count, *part.shape[1:]), dtype=part.dtype, device=device)
    whole[mine.start : mine.stop] = part.to(device)
    return ds.all_reduce_sum(whole).cpu()


def held_out_bits(model: Model, spec: ModelSpec, split: Split, density: TimeDensity, draws: int, monitor: Monitor):
    """A report that evaluates the bound over the whole split."""
    device = next(model.parameters()).device

    def run(step: int) -> None:
        mine = _share(len(split))
        values = nll.elbo(model, spec, split, mine, density, draws) if mine else torch.empty(0, draws).double()
        result = estimate(_gather(values, mine, len(split), device))
        monitor.log(step, {"bits_per_dim": result.mean, "standard_error": result.error_images}, prefix=split.name)
        monitor.say(f"step {step}  {split.name} {result.mean:.4f} +- {result.error_images:.4f} bits/dim (ELBO, EMA)")

    return run


def sample_grid(model: Model, spec: ModelSpec, settings: Settings, seed: int, folder: Path, monitor: Monitor):
    """A report that samples a grid and its denoising path, as PNG and in TensorBoard."""
    device = next(model.parameters()).device
    times = time_grid("asinh", settings.sample_steps, spec.scale)
    count = settings.sample_images

    def run(step: int) -> None:
        mine = _share(count)
        labels = [i % len(spec.classes) for i in mine] if spec.classes else None
        if mine:
            drawn = samples.draw(model, spec, mine, labels, times, settings.sample_solver, seed).path
        else:
            drawn = torch.empty(0, samples.PATH_IMAGES, *spec.shape, dtype=torch.uint8)
        path = samples.to_pixels(_gather(drawn, mine, count, device), spec.levels)
        if ds.rank() != 0:
            return
        zoom = samples.zoom_for(spec.size)
        columns = max(1, round(count**0.5))
        images = samples.grid(path[:, -1], columns, zoom)
        denoising = samples.grid(path[:8].flatten(0, 1), path.shape[1], zoom)
        samples.save_png(images, folder / f"step_{step:08d}.png")
        samples.save_png(denoising, folder / f"step_{step:08d}_path.png")
        monitor.image(step, "samples", images)
        monitor.image(step, "denoising_path", denoising)

    return run
