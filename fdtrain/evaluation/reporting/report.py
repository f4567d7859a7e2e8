"""One HTML page of a run: what was trained, on what, for how long, and what it is worth (docs/evaluation.md).

The page is self-contained: pictures are embedded, nothing is fetched, no script runs. Whatever comes from a file is
escaped by the template (report.html.jinja).
"""

import base64
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fdtrain.credentials import masked
from fdtrain.evaluation.reporting.published import FIGURES
from fdtrain.evaluation.reporting.result import (
    Bound,
    CurveResult,
    EmaResult,
    FrechetResult,
    NllResult,
    OdeLikelihood,
    Result,
)
from fdtrain.evaluation.reporting.run_folder import RunFolder

AVERAGES = {
    "bits_per_dim": "Bits/dim against the relative length of the average of the weights.",
    "distance": "Distance of samples to the data against the relative length of the average of the weights.",
}
CURVES = {
    "ode": "Deterministic solvers: RMS distance to a fine solution of the ODE from the same noise.",
    "integrand": "The bound's integral by time. Its mean over the time quantile, and the standard normal's part, make "
    "the bound.",
    "variance": "Variance of one image's estimate by time, and what strata save of it.",
}
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Picture:
    """A PNG file in base64. Those of few ``pixels`` are magnified without smoothing."""

    data: str
    caption: str
    pixels: bool = False


def page(run: RunFolder, training: Path | None) -> str:
    """The page of a run; ``training`` is the picture of its training curve, where there is one."""
    caption = "Bits/dim of training batches, and of held-out images by the averaged weights."
    return TEMPLATES.get_template("report.html.jinja").render(
        name=run.path.resolve().name,
        folder=shlex.quote(str(run.path)),
        final=shlex.quote(str(run.path / "samples" / "final.png")),
        facts=_facts(run),
        likelihoods=_likelihoods(run),
        distances=[_distances(result) for result in run.of_kind(FrechetResult).values()],
        dataset=run.dataset and run.dataset.name,
        published=_published(run),
        samples=_samples(run.path / "samples"),
        curves=_curves(run),
        training=picture(training, caption) if training else None,
        config=masked(run.config),
    )


def _facts(run: RunFolder) -> dict[str, str | None]:
    """What the run was, by title; None where it is not recorded."""
    data, environment, hours = run.dataset, run.environment, run.hours
    facts: dict[str, str | None] = dict.fromkeys(
        ("Data set", "Images", "Trained", "Time", "Hardware", "Versions", "Commit")
    )
    if data:
        counts = ", ".join(f"{split}: {data.images(split):,} images" for split in data.splits)
        facts["Data set"] = f"{_short(data.name)} ({_short(data.source)})"
        facts["Images"] = f"{data.size}x{data.size}, {data.channels} channels, {data.levels} levels; {counts}"
    if seen := run.series("train/images_seen"):
        facts["Trained"] = f"{seen[-1][0]:,} steps, {seen[-1][1]:,} images seen"
    if hours:
        facts["Time"] = f"{_hours(hours)} of training steps; evaluation, samples and checkpoints come on top"
    if environment:
        packages = ("fdtrain", "torch", "deepspeed", "python")
        facts["Hardware"] = f"{_short(environment.processes)} x {_short(environment.device)}"
        facts["Versions"] = ", ".join(f"{name} {_short(getattr(environment, name))}" for name in packages)
        facts["Commit"] = _short(environment.commit)
    return facts


def _likelihoods(run: RunFolder) -> list[list[str]]:
    """Rows of the table of bits/dim."""
    rows = []
    for result in run.of_kind(NllResult).values():
        for title, value in result.estimates():
            errors = ("-" if error is None else f"{error:.4f}" for error in (value.error_draws, value.error_images))
            rows.append([title, f"{value.bits_per_dim:.4f}", " / ".join(errors), _method(result, value), _on(result)])
    return rows


def _method(result: NllResult, value: Bound | OdeLikelihood) -> str:
    of = value if isinstance(value, OdeLikelihood) else result
    closed = value is result.elbo_closed
    parts = ["closed interval" if closed else _short(result.bound), f"dequantisation {_short(of.dequantisation)}"]
    parts.append(_short(result.dtype))
    if isinstance(value, Bound):
        parts.append(f"{value.draws} draws per image" + (", antithetic" if value.antithetic else ""))
    if value.dequantisations > 1:
        parts.append(f"K = {value.dequantisations}")
    if isinstance(value, OdeLikelihood):
        parts.append(f"tolerance {value.tolerance}, NFE {value.nfe:.0f}, {_short(value.trace)} trace")
    return "; ".join(parts)


def _on(result: NllResult) -> str:
    """The images and the weights."""
    count, whole = result.images, result.images_in_split
    images = f"all {count:,}" if count == whole else f"the first {count:,} of {whole:,}"
    return f"{images} images of {_short(result.dataset)}/{_short(result.split)}; {_weights(result)}"


def _weights(result: Result) -> str:
    chosen = "" if result.ema_length is None else f", average of length {result.ema_length:g}"
    return f"step {_short(result.step)}{chosen}"


def _distances(result: FrechetResult) -> list[str]:
    """A row of the table of distances."""
    features, reference = result.features, result.reference
    spread = "" if result.spread is None else f" \u00b1 {result.spread:.3f}"
    # Another network's classes give another score than the one known by Inception's name.
    score = "Inception Score" if result.name == "FID" else "class score"
    others = {"KID": result.kid, "precision": result.precision, "recall": result.recall, score: result.inception_score}
    samples = (
        f"{result.images:,} images in each of {max(1, len(result.values))} sets, {_short(result.solver)} on "
        f"{_short(result.grid)}, NFE {_short(result.nfe)}, guidance {_short(result.guidance)}; "
        f"{_weights(result)}"
    )
    definition = (
        f"features {_short(features.name)} ({features.dims} dimensions, sha256 {_short(features.sha256)[:12]}); "
        f"reference {_short(reference.dataset)}/{_short(reference.split)}, {reference.images:,} images"
    )
    return [
        _short(result.name),
        f"{result.value:.3f}{spread}",
        "; ".join(f"{label} {value:.4f}" for label, value in others.items() if value is not None),
        f"unfinished: {samples}" if result.unfinished else samples,
        definition,
    ]


def _published(run: RunFolder) -> list[list[str]]:
    """Rows of published figures, of the run's data set alone."""
    figures = FIGURES.get(run.dataset.name, []) if run.dataset else []
    return [[f.model, f.bits_per_dim or "-", f.fid or "-", f.how, f.source] for f in figures]


def _samples(folder: Path) -> list[Picture]:
    """The last sheet of samples, and the last denoising path."""
    sheets = sorted(path for path in folder.glob("step_*.png") if not path.stem.endswith("_path"))
    final = folder / "final.png"
    sheets = [final] if final.is_file() else sheets[-1:]
    paths = sorted(folder.glob("step_*_path.png"))[-1:] if sheets else []
    captions = {path: f"samples/{path.name}, from the averaged weights." for path in sheets}
    captions |= {path: f"samples/{path.name}: predicted images on the way from noise to image." for path in paths}
    return [picture(path, caption, pixels=True) for path, caption in captions.items()]


def _curves(run: RunFolder) -> list[Picture]:
    pictures = []
    for path, result in {**run.of_kind(CurveResult), **run.of_kind(EmaResult)}.items():
        quality = f"{_short(result.distance)} of samples to the data, against evaluations of the network."
        for name, caption in (AVERAGES if isinstance(result, EmaResult) else {"quality": quality, **CURVES}).items():
            drawn = path.with_name(f"{path.stem}_{name}.png")
            if drawn.is_file():
                on = f"{result.images:,} images, {_short(result.split)} split, step {_short(result.step)}."
                pictures.append(picture(drawn, f"{caption} {on}"))
    return pictures


def picture(path: Path, caption: str, pixels: bool = False) -> Picture:
    """A PNG file for a page."""
    return Picture(base64.b64encode(path.read_bytes()).decode(), caption, pixels)


def _short(value: Any) -> str:
    """A value as text that is short enough for a cell."""
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else str(value)[:200]


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
