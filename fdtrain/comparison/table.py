"""The runs' results as one table: means over seeds, and paired differences image by image."""

import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fdtrain.comparison.runs import PlannedRun, result_files
from fdtrain.evaluation import run_folder
from fdtrain.evaluation.result import FrechetPoint, NllResult, TrainingNoise
from fdtrain.evaluation.run_folder import RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """A run with its results; ``bits`` are each test image's, by the kind of value, ``(images,)``."""

    seed: int
    folder: RunFolder
    nll: NllResult
    noise: TrainingNoise
    bits: dict[str, Tensor]


def finished_run(run: PlannedRun, closed: bool) -> FinishedRun:
    """Read the results of a run that is finished; ``closed``: its own bound is that of the closed interval."""
    assert run.settings is not None
    folder, paths = run_folder.read(run.folder), result_files(run.folder, run.config, run.settings)
    bits = _values(paths["bound"])
    if "ode" in paths:
        bits["ode"] = _values(paths["ode"])["ode"]
        bits["elbo_of_ode_images"] = bits["elbo"][: len(bits["ode"])]
    if closed:
        bits["elbo_closed"] = bits["elbo"]
    nll, noise = folder.results[paths["bound"]], folder.results[paths["noise"]]
    assert isinstance(nll, NllResult)
    assert isinstance(noise, TrainingNoise)
    return FinishedRun(run.seed, folder, nll, noise, bits)


def _values(path: Path) -> dict[str, Tensor]:
    return load_file(path.with_suffix(".safetensors"))


def mean(values: list[float]) -> dict[str, Any] | None:
    """Mean over seeds and its standard error; None of nothing."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.mean(values), "error": error, "values": values}


def difference(own: dict[int, Tensor], reference: dict[int, Tensor]) -> dict[str, Any] | None:
    """Paired difference of each image's bits/dim, by seed ``(images,)``, over the seeds that both have."""
    seeds = sorted(own.keys() & reference.keys())
    if not seeds:
        return None
    values = torch.stack([own[seed] - reference[seed] for seed in seeds]).double()
    by_image, by_seed = values.mean(0), values.mean(1)
    images = len(by_image)
    return {
        "mean": values.mean().item(),
        "error_images": by_image.std().item() / images**0.5 if images > 1 else None,
        "error_seeds": by_seed.std().item() / len(seeds) ** 0.5 if len(seeds) > 1 else None,
        "images": images,
        "seeds": seeds,
    }


def bits(kind: str, runs: list[FinishedRun], reference: list[FinishedRun]) -> dict[str, Any] | None:
    """The table's entry of a kind of bits/dim, where the runs have it."""
    own = {run.seed: run.bits[kind] for run in runs if kind in run.bits}
    if not own:
        return None
    others = {run.seed: run.bits[kind] for run in reference if kind in run.bits}
    return {
        "bits_per_dim": mean([values.mean().item() for values in own.values()]),
        "difference": None if runs is reference else difference(own, others),
    }


def row(runs: list[FinishedRun], reference: list[FinishedRun]) -> dict[str, Any]:
    """What a variant's finished runs give."""
    if not runs:
        return {}
    own = [run.noise.own_sampler for run in runs if run.noise.own_sampler is not None]
    scales = [run.noise.gradient.noise_scale for run in runs]
    edges = runs[0].noise.batch.t_edges
    return {
        "steps": runs[0].nll.step,
        "own_bound": bits("elbo", runs, reference),
        "closed_bound": bits("elbo_closed", runs, reference),
        "ode": bits("ode", runs, reference),
        "own_bound_of_ode_images": bits("elbo_of_ode_images", runs, reference),
        "points": _points([run.noise.points for run in runs]),
        "own_sampler": f"{own[0].solver}, {own[0].grid}" if own else None,
        "own_points": _points([sampler.points for sampler in own]),
        "variance": mean([run.noise.batch.variance for run in runs]),
        "gradient_noise": mean([run.noise.gradient.noise for run in runs]),
        "noise_scale": mean([scale for scale in scales if scale is not None]) if None not in scales else None,
        "images_per_second": mean([speed for run in runs if (speed := run.folder.images_per_second) is not None]),
        "t_middles": [0.5 * (a + b) for a, b in pairwise(edges)],
        "variance_by_time": _means([run.noise.batch.by_time for run in runs]),
        "training": _curve([run.folder for run in runs], runs[0].nll.split),
    }


def _points(runs: list[list[FrechetPoint]]) -> list[dict[str, Any]]:
    """Means over the runs, each of which has the same numbers of evaluations."""
    return [
        {"nfe": points[0].nfe, "distance": mean([point.distance for point in points])}
        for points in zip(*runs, strict=True)
    ]


def _means(columns: list[list[float | None]]) -> list[float | None]:
    means = []
    for column in zip(*columns):
        values = [value for value in column if value is not None]
        means.append(statistics.mean(values) if values else None)
    return means


def _curve(folders: list[RunFolder], split: str) -> list[tuple[int, float]]:
    """Bits/dim of the split by step where they were measured while training, else the batches'; mean over seeds."""
    for name in (f"{split}/bits_per_dim", "train/bits_per_dim"):
        by_step: dict[float, list[float]] = {}
        for folder in folders:
            for step, value in folder.series(name):
                by_step.setdefault(step, []).append(value)
        if by_step:
            return [(int(step), statistics.mean(values)) for step, values in sorted(by_step.items())]
    return []
