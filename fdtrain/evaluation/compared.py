"""The numbers of runs side by side: means over seeds, paired differences image by image (docs/comparing.md)."""

import csv
import io
import math
import os
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.evaluation.result import NllResult, SamplerPoints, TrainingNoise
from fdtrain.evaluation.run_folder import RunFolder, image_values

UNCOMPARED = ("name", "output")
"""Settings that differ in any two runs."""
KINDS = {
    "elbo": ("own_bound", "own bound"),
    "elbo_closed": ("closed_bound", "closed bound"),
    "elbo_importance": ("own_bound_importance", "own bound, importance-weighted"),
    "ode": ("ode", "ODE"),
    "ode_importance": ("ode_importance", "ODE, importance-weighted"),
    "elbo_of_ode_images": ("own_bound_of_ode_images", "own bound of the ODE's images"),
}
"""Kinds of bits/dim: their names in files, and on the page."""
Row = dict[str, Any]
"""The numbers of a variant, as ``comparison.json`` has them."""


@dataclass(frozen=True)
class ComparedVariant:
    """Runs that differ by their seed alone, the settings of all, and the reasons of those that failed, by seed.

    ``bound`` is what its own bound is of, number by number.
    """

    name: str
    runs: dict[int, RunFolder]
    settings: dict[str, Any]
    failures: dict[int, str] = field(default_factory=dict)
    bound: Row = field(default_factory=dict)

    @property
    def folders(self) -> list[RunFolder]:
        return list(self.runs.values())


@dataclass(frozen=True)
class Bits:
    """A mean over images in bits/dim, its standard error, and the values ``(images,)``, if they were stored.

    ``kind`` is one of :data:`KINDS`.
    """

    result: NllResult
    kind: str
    mean: float
    error: float | None
    values: Tensor | None

    @property
    def images(self) -> tuple[str, int]:
        """Which they are of: the first so many of a split."""
        return self.result.fingerprint, self.result.images


def of_runs(folders: list[RunFolder]) -> list[ComparedVariant]:
    """Each run by itself, by the name of its folder, or where two have the same by the path that tells them apart.
    Raises UserError: a run is named twice."""
    paths = [run.path.resolve() for run in folders]
    if twice := next((run.path for run, path in zip(folders, paths) if paths.count(path) > 1), None):
        raise UserError(f"{twice} is named twice. Name each run once.")
    names = [run.name for run in folders]
    if len(set(names)) < len(names):
        common = Path(os.path.commonpath(paths))
        names = [path.relative_to(common).as_posix() for path in paths]
    return [ComparedVariant(name, {0: run}, run.settings) for name, run in zip(names, folders)]


def bits_of(run: RunFolder) -> dict[str, Bits]:
    """Each kind of bits/dim, by the evaluation that has it: of held-out images before others, then of the most.
    Raises UserError: a file of the run is damaged."""
    found: dict[str, Bits] = {}
    for path, result in sorted(run.of_kind(NllResult).items(), key=lambda item: run.worth(item[1])):
        values = image_values(path, result)
        for kind in NllResult.TITLES:
            if (estimate := getattr(result, kind)) is not None:
                found[kind] = Bits(result, kind, estimate.bits_per_dim, estimate.error_images, values.get(kind))
    own, ode = found.get("elbo"), found.get("ode")
    if own and own.result.bound == "closed interval":
        found["elbo_closed"] = own
    if own and ode and own.values is not None and own.result.fingerprint == ode.result.fingerprint:
        first = own.values[: ode.result.images]
        error = first.std().item() / len(first) ** 0.5 if len(first) > 1 else None
        found["elbo_of_ode_images"] = Bits(ode.result, "elbo_of_ode_images", first.mean().item(), error, first)
    return found


def mean(values: list[float]) -> Row | None:
    """Mean over seeds and its standard error; None of nothing."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.mean(values), "error": error, "values": values}


def difference(own: dict[int, Tensor], reference: dict[int, Tensor]) -> Row | None:
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


def rows(variants: list[ComparedVariant], reference: str) -> list[Row]:
    """The numbers of each variant, and their differences to the reference. Raises UserError: a file of a run is
    damaged."""
    bits = {v.name: {seed: bits_of(run) for seed, run in v.runs.items()} for v in variants}
    first = next(v for v in variants if v.name == reference)
    return [
        {
            "name": v.name,
            "settings": {key: v.settings[key] for key in differing(v.settings, first.settings) if key in v.settings},
            **v.bound,
            "seeds": list(v.runs),
            "failures": [{"seed": seed, "reason": reason} for seed, reason in v.failures.items()],
            **(_numbers(v, bits[v.name], bits[reference] if v is not first else {}) if v.runs else {}),
        }
        for v in variants
    ]


def differing(own: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """The settings in which a variant differs from the reference."""
    keys = dict.fromkeys([*own, *reference])
    return [key for key in keys if key not in UNCOMPARED and own.get(key, ...) != reference.get(key, ...)]


def _numbers(variant: ComparedVariant, own: dict[int, dict[str, Bits]], reference: dict[int, dict[str, Bits]]) -> Row:
    """What the runs of a variant give."""
    row: Row = _described(next(iter(own.values())))
    for kind, (key, _) in KINDS.items():
        found = {seed: bits[kind] for seed, bits in own.items() if kind in bits}
        there = {seed: bits[kind] for seed, bits in reference.items() if kind in bits}
        if found:
            same = [seed for seed in found.keys() & there.keys() if found[seed].images == there[seed].images]
            pairs = ({s: v for s in same if (v := of[s].values) is not None} for of in (found, there))
            row[key] = {
                "bits_per_dim": mean([b.mean for b in found.values()]),
                "error_images": next(iter(found.values())).error if len(found) == 1 else None,
                "difference": difference(*pairs),
            }
    noise = [found for run in variant.folders for found in run.of_kind(TrainingNoise).values()]
    if noise:
        samplers = [_sampler([found.samplers[k] for found in noise]) for k in range(len(noise[0].samplers))]
        own_sampler = _sampler([found.own_sampler for found in noise if found.own_sampler is not None])
        scales = [found.gradient.noise_scale for found in noise]
        by_time = [[value for value in v if value is not None] for v in zip(*(found.batch.by_time for found in noise))]
        row |= {
            "distance": noise[0].distance,
            "samplers": samplers,
            **min(samplers, key=lambda each: math.prod(point["distance"]["mean"] for point in each["points"])),
            **{f"own_{key}": value for key, value in own_sampler.items()},
            "variance": mean([found.batch.variance for found in noise]),
            "gradient_noise": mean([found.gradient.noise for found in noise]),
            "noise_scale": mean([scale for scale in scales if scale is not None]) if None not in scales else None,
            "t_middles": [0.5 * (a + b) for a, b in pairwise(noise[0].batch.t_edges)],
            "variance_by_time": [statistics.mean(values) if values else None for values in by_time],
        }
    speeds = [speed for run in variant.folders if (speed := run.images_per_second) is not None]
    return row | {"images_per_second": mean(speeds)}


def _described(bits: dict[str, Bits]) -> Row:
    """What the numbers of a run are of."""
    if not bits:
        return {}
    first, ode = next(iter(bits.values())).result, bits.get("ode")
    images = dict.fromkeys(each.result.coverage for each in bits.values())
    row = {"bound": first.bound, "dequantisation": first.dequantisation, "images": "; ".join(images)}
    row |= {"steps": first.step}
    return row | ({"ode_dequantisation": ode.result.ode.dequantisation} if ode and ode.result.ode else {})


def _sampler(runs: list[SamplerPoints]) -> Row:
    """Means over the runs, each of which has the same sampler and numbers of evaluations."""
    if not runs:
        return {}
    points = zip(*(run.points for run in runs), strict=True)
    means = [{"nfe": p[0].nfe, "distance": mean([point.distance for point in p])} for p in points]
    return {"sampler": f"{runs[0].solver}, {runs[0].grid}", "points": means}


def comma_separated(rows: list[Row]) -> str:
    """One row for each variant, every number in a column of its own; empty where there is none."""
    numbers = [_columns(row) for row in rows]
    text = io.StringIO()
    names = dict.fromkeys(key for row in numbers for key in row)
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(numbers)
    return text.getvalue()


def _columns(row: Row) -> Row:
    interval = zip(("t_min", "t_max"), row.get("interval", ()))
    bound = {key: row[key] for key in ("decoder", "dequantisation", "ode_dequantisation") if key in row}
    columns: Row = {"variant": row["name"], **dict(interval), **bound}
    columns |= {"seeds": len(row["seeds"]), "failed": len(row["failures"])}
    for name, _ in KINDS.values():
        if part := row.get(name):
            bits, found = part["bits_per_dim"], part["difference"]
            columns |= {f"{name}_bits_per_dim": bits["mean"], f"{name}_error_seeds": bits["error"]}
            if found:
                columns[f"{name}_difference"] = found["mean"]
                columns |= {f"{name}_difference_{key}": found[key] for key in ("error_images", "error_seeds")}
    samplers = {key: row[key] for key in ("sampler", "own_sampler") if key in row}
    means = {f"frechet_{point['nfe']}": point["distance"] for point in row.get("points", [])}
    means |= {f"own_sampler_frechet_{point['nfe']}": point["distance"] for point in row.get("own_points", [])}
    means |= {"batch_variance": row.get("variance")}
    means |= {key: row.get(key) for key in ("gradient_noise", "noise_scale", "images_per_second")}
    for name, value in means.items():
        if value is not None:
            columns |= {name: value["mean"], f"{name}_error": value["error"]}
    return columns | samplers | {"steps": row.get("steps")}
