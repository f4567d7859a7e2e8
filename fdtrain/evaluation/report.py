"""One HTML page of a run: what was trained, on what, for how long, and what it is worth (docs/evaluation.md).

The page is self-contained: pictures are embedded, nothing is fetched, no script runs. Whatever comes from a file is
escaped by the template (report.html.jinja).
"""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fdtrain.credentials import masked
from fdtrain.errors import UserError
from fdtrain.evaluation import figures, pictures, training_curves
from fdtrain.evaluation.load import FOLDER
from fdtrain.evaluation.page import TEMPLATES, Link
from fdtrain.evaluation.pictures import Picture
from fdtrain.evaluation.plotting import Plot
from fdtrain.evaluation.published import known_figures
from fdtrain.evaluation.result import (
    BoundEstimate,
    CurveResult,
    EmaResult,
    FrechetResult,
    NllResult,
    OdeEstimate,
    Result,
)
from fdtrain.evaluation.run_folder import ImageBits, RunFolder, RunImages, image_bits
from fdtrain.evaluation.wording import counted, duration, short, with_error

REAL_IMAGES = 64
"""Beside a sheet that does not say how many it has."""
EXTREMES = 8
"""Images shown of the easiest, and of the hardest."""


@dataclass(frozen=True)
class Card:
    """A figure at the head of the page."""

    title: str
    value: str
    note: str


def page(run: RunFolder, images: RunImages, path: Path) -> str:
    """The page of a run, with links from ``path`` to its files.

    Raises:
        UserError: a file of the run is damaged.
    """
    bits = image_bits(run)
    samples = _samples(run.path / "samples")
    return TEMPLATES.get_template("report.html.jinja").render(
        name=run.name,
        folder=shlex.quote(str(run.path)),
        final=shlex.quote(str(run.path / "samples" / "final.png")),
        cards=_cards(run),
        facts=_facts(run),
        likelihoods=_likelihoods(run),
        distances=[_distances(result) for result in run.of_kind(FrechetResult).values()],
        dataset=run.dataset and run.dataset.name,
        own=_own_figures(run),
        known=known_figures(run.dataset) if run.dataset else [],
        samples=samples,
        real=real_images(images, run.path / "samples", bool(samples)),
        denoising=_denoising(run.path / "samples"),
        extremes=_extremes(bits, images),
        histogram=_histogram(bits),
        curves=_curves(run),
        training=training_curves.of_run(run),
        config=masked(run.config),
        files=list(_files(run.path, path)),
    )


def _cards(run: RunFolder) -> list[Card]:
    """What a reader looks for first, as far as there is any."""
    cards = []
    if estimates := best_estimate(run):
        result, title, value = estimates
        error = with_error(value.bits_per_dim, value.error_images, 4)
        cards.append(Card("bits/dim", error, f"{title}, {of_images(result)}, standard error over images"))
    for result in run.of_kind(FrechetResult).values():
        sets = counted(max(1, len(result.values)), "set")
        note = f"{sets} of {counted(result.images, 'sample')}, NFE {short(result.nfe)}"
        cards.append(Card(short(result.name), with_error(result.value, result.spread, 3), note))
    if run.parameters and run.spec:
        cards.append(Card("parameters", f"{run.parameters / 1e6:.3g} M", f"{run.parameters:,}, {run.spec.network}"))
    if seen := run.series("train/images_seen"):
        time = f"{duration(run.hours)} of training steps" if run.hours else "time not recorded"
        cards.append(Card("steps", f"{seen[-1][0]:,}", f"{counted(int(seen[-1][1]), 'image')} seen; {time}"))
    if run.images_per_second:
        cards.append(Card("images/s", f"{run.images_per_second:,.0f}", f"median while training; {_hardware(run)}"))
    return cards


def best_estimate(run: RunFolder) -> tuple[NllResult, str, BoundEstimate | OdeEstimate] | None:
    """The first estimate of the evaluation of the most images."""
    for result in sorted(run.of_kind(NllResult).values(), key=lambda result: -result.images):
        for title, value in result.estimates():
            return result, title, value
    return None


def _hardware(run: RunFolder) -> str:
    environment = run.environment
    return f"{short(environment.processes)} x {short(environment.device)}" if environment else "hardware not recorded"


def _facts(run: RunFolder) -> dict[str, str | None]:
    """What the run was, by title; None where it is not recorded."""
    data, environment, hours = run.dataset, run.environment, run.hours
    titles = ("Data set", "Images", "Network", "Operations", "Trained", "Time", "Hardware", "Versions", "Commit")
    facts: dict[str, str | None] = dict.fromkeys(titles)
    if data:
        counts = ", ".join(f"{split}: {counted(data.images(split), 'image')}" for split in data.splits)
        facts["Data set"] = f"{short(data.name)} ({short(data.source)})"
        kind = f"{data.size}x{data.size}, {counted(data.channels, 'channel')}, {counted(data.levels, 'level')}"
        facts["Images"] = f"{kind}; {counts}"
    if run.spec:
        options = ", ".join(f"{key} {short(value)}" for key, value in run.spec.network_options.items())
        facts["Network"] = f"{run.spec.network}, {counted(run.parameters or 0, 'parameter')}: {options}"
    if flops := run.series("train/gflop_per_image"):
        rate = [value for _, value in run.series("train/tflops_per_device")]
        facts["Operations"] = f"{flops[-1][1]:.3g} GFLOP to train on one image" + (
            f"; up to {max(rate):.3g} TFLOP/s on each device" if rate else ""
        )
    if seen := run.series("train/images_seen"):
        facts["Trained"] = f"{counted(int(seen[-1][0]), 'step')}, {counted(int(seen[-1][1]), 'image')} seen"
    if hours:
        facts["Time"] = f"{duration(hours)} of training steps; evaluation, samples and checkpoints come on top"
    if environment:
        packages = ("fdtrain", "torch", "deepspeed", "python")
        facts["Hardware"] = _hardware(run)
        facts["Versions"] = ", ".join(f"{name} {short(getattr(environment, name))}" for name in packages)
        facts["Commit"] = short(environment.commit)
    return facts


def _likelihoods(run: RunFolder) -> list[list[str]]:
    """Rows of the table of bits/dim."""
    rows = []
    for result in run.of_kind(NllResult).values():
        for title, value in result.estimates():
            errors = ("-" if error is None else f"{error:.4f}" for error in (value.error_draws, value.error_images))
            on = f"{of_images(result)} of {short(result.dataset)}/{short(result.split)}; {_weights(result)}"
            rows.append([title, f"{value.bits_per_dim:.4f}", " / ".join(errors), _method(result, value), on])
    return rows


def _method(result: NllResult, value: BoundEstimate | OdeEstimate) -> str:
    of = value if isinstance(value, OdeEstimate) else result
    closed = value is result.elbo_closed
    parts = ["closed interval" if closed else short(result.bound), f"dequantisation {short(of.dequantisation)}"]
    parts.append(short(result.dtype))
    if isinstance(value, BoundEstimate):
        parts.append(f"{counted(value.draws, 'draw')} per image")
    if value.dequantisations > 1:
        parts.append(f"K = {value.dequantisations}")
    if isinstance(value, OdeEstimate):
        parts.append(f"tolerance {value.tolerance}, NFE {value.nfe:.0f}, {short(value.trace)} trace")
    return "; ".join(parts)


def _weights(result: Result) -> str:
    chosen = "" if result.ema_length is None else f", average of length {result.ema_length:g}"
    return f"step {short(result.step)}{chosen}"


def of_images(result: NllResult) -> str:
    """How many of the split were evaluated."""
    count, whole = result.images, counted(result.images_in_split, "image")
    return f"all {whole}" if count == result.images_in_split else f"the first {count:,} of {whole}"


def _distances(result: FrechetResult) -> list[str]:
    """A row of the table of distances."""
    features = result.features
    # Another network's classes give another score than the one known by Inception's name.
    score = "Inception Score" if result.name == "FID" else "class score"
    others = {"KID": result.kid, "precision": result.precision, "recall": result.recall, score: result.inception_score}
    sets = max(1, len(result.values))
    samples = (
        f"{counted(result.images, 'image')} in {'each of ' if sets > 1 else ''}{counted(sets, 'set')}, "
        f"{short(result.solver)} on {short(result.grid)}, NFE {short(result.nfe)}, guidance {short(result.guidance)}; "
        f"{_weights(result)}"
    )
    definition = (
        f"features {short(features.name)} ({counted(features.dims, 'dimension')}, sha256 "
        f"{short(features.sha256)[:12]}); reference: {result.reference.text}"
    )
    return [
        short(result.name),
        with_error(result.value, result.spread, 3),
        "; ".join(f"{label} {value:.4f}" for label, value in others.items() if value is not None),
        f"unfinished: {samples}" if result.unfinished else samples,
        definition,
    ]


def _own_figures(run: RunFolder) -> list[list[str]]:
    """The run's rows above the known figures: model, bits/dim, FID, likelihood. Only Inception's distance is a FID."""
    fids = [with_error(r.value, r.spread, 2) for r in run.of_kind(FrechetResult).values() if r.name == "FID"]
    rows = []
    for result in run.of_kind(NllResult).values():
        for title, value in result.estimates():
            of = value if isinstance(value, OdeEstimate) else result
            bits = with_error(value.bits_per_dim, value.error_images, 4)
            how = f"{title}, {short(of.dequantisation)}; {of_images(result)}"
            rows.append([run.name, bits, (fids or ["-"])[0], how])
    return rows or ([[run.name, "-", fids[0], "no likelihood yet"]] if fids else [])


def _samples(folder: Path) -> list[Picture]:
    """The last sheet of samples."""
    return [pictures.of_file(path, f"samples/{path.name}, from the averaged weights") for path in last_sheet(folder)]


def last_sheet(folder: Path) -> list[Path]:
    """What ``fdtrain sample`` has drawn for the report, else the last sheet of training, if there is one."""
    sheets = sorted(path for path in folder.glob("step_*.png") if not path.stem.endswith("_path"))
    final = folder / "final.png"
    return [final] if final.is_file() else sheets[-1:]


def _denoising(folder: Path) -> list[Picture]:
    title = "from left to right the predicted image on the way from noise to the image, which is the last"
    return [pictures.of_file(path, f"samples/{path.name}, {title}") for path in _last_path(folder)]


def _last_path(folder: Path) -> list[Path]:
    """The last denoising path, if there is one."""
    return sorted(folder.glob("step_*_path.png"))[-1:]


def real_images(images: RunImages, folder: Path, wanted: bool) -> Picture | str | None:
    """Real images to stand beside samples, or why there are none."""
    if not wanted:
        return None
    count = next((pictures.images_in(sheet) for sheet in last_sheet(folder)), None) or REAL_IMAGES
    try:
        levels, count_of_levels = images.spread(count)
    except UserError as error:
        return str(error)
    return pictures.of_images(levels, count_of_levels, f"Real images of the split '{images.held_out}'.")


def _extremes(bits: ImageBits | None, images: RunImages) -> dict[str, list[Picture]] | str | None:
    """The easiest and the hardest images with their bits/dim, or why they cannot be shown."""
    if bits is None or len(bits.values) < 2 * EXTREMES:
        return None
    order = bits.values.argsort().tolist()
    parts = {"Easiest": order[:EXTREMES], "Hardest": order[: -EXTREMES - 1 : -1]}
    try:
        drawn = {title: images.chosen(bits.result, numbers) for title, numbers in parts.items()}
    except UserError as error:
        return str(error)
    return {
        title: [
            pictures.of_image(level, drawn[title][1], f"{bits.values[i]:.3f}")
            for i, level in zip(numbers, drawn[title][0])
        ]
        for title, numbers in parts.items()
    }


def _histogram(bits: ImageBits | None) -> Plot | None:
    if bits is None or len(bits.values) < 2 * EXTREMES:
        return None
    found, below = bits.estimate, int((bits.values < 0).sum())
    caption = f"{bits.title} of {of_images(bits.result)}"
    if isinstance(found, BoundEstimate):
        caption += f", {counted(found.draws, 'draw')} of each: the spread, and who is easy or hard, has their noise too"
    if below:
        caption += f". No image has less than zero: the {below:,} that seem to are noise, which --draws reduces"
    caption += "."
    return figures.histogram(bits.values.tolist(), bits.values.mean().item(), caption)


def _curves(run: RunFolder) -> list[Plot]:
    curves = [figures.curves(found) for found in run.of_kind(CurveResult).values()]
    averages = [figures.averages(found) for found in run.of_kind(EmaResult).values()]
    return [plot for plots in curves + averages for plot in plots.values()]


def _files(folder: Path, page: Path) -> Iterator[Link]:
    """The run's files that a reader may want, with their addresses relative to the page."""
    records = (folder / name for name in ("config.yaml", "dataset.json", "environment.json", "metrics.jsonl"))
    drawn = [*last_sheet(folder / "samples"), *_last_path(folder / "samples")]
    for file in (*records, *sorted((folder / FOLDER).glob("*.json")), *drawn):
        if file.is_file():
            address = Path(os.path.relpath(file, page.parent)).as_posix()
            yield Link(file.relative_to(folder).as_posix(), quote(address))
