"""The plots of results and of logs: of one run's, and of several runs' in the same axes."""

import statistics
from functools import partial
from itertools import pairwise

from fdtrain.evaluation import plotting
from fdtrain.evaluation.plotting import COLOURS, Level, Line, Plot, evaluations_axis, steps_axis, time_axis
from fdtrain.evaluation.result import CurvePoint, CurveResult, EmaResult, Strata
from fdtrain.evaluation.run_folder import RunFolder
from fdtrain.evaluation.wording import counted, short

Runs = dict[str, list[RunFolder]]
"""Runs that differ by their seed alone, by the names of their lines; one run alone may have none."""
EVALUATIONS = "evaluations of the network per image"
LENGTH = "relative length of the average"


def curves(found: CurveResult) -> dict[str, Plot]:
    """The plots of what ``fdtrain evaluate curve`` has measured, by name."""
    on = f"{counted(found.images, 'image')}, {short(found.split)} split, step {short(found.step)}."
    title = f"{found.distance} to {found.split}, {found.images:,} samples"
    caption = f"{found.distance} of samples to the data, against evaluations of the network. {on}"
    plots = {"quality": quality({"": found.points}, "distance", title, caption)}
    if any(point.rms is not None for point in found.points):
        plots["ode"] = quality(
            {"": found.points},
            "rms",
            "RMS distance to the fine ODE solution, pixels in -1..1",
            "Deterministic solvers: root mean square distance to a fine solution of the ODE "
            f"({found.reference.solver}, {found.reference.nfe} evaluations) from the same noise. {on}",
        )
    return plots | by_time(found.strata, on)


def quality(points: dict[str, list[CurvePoint]], key: str, title: str, caption: str) -> Plot:
    """``key`` of each point (distance or rms) against the number of evaluations, one line for each solver and grid.

    The bands reach from the least to the most over the seeds, where there are several.

    Args:
        points: by the name of their run, which is part of a line's name; it may be empty.
    """
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    sets = 0
    for run, each in points.items():
        for point in sorted(each, key=lambda point: (point.solver, str(point.grid), point.nfe)):
            if (value := getattr(point, key)) is not None:
                seeds = getattr(point, f"{key}_by_seed") or [value]
                name = f"{run}: {point.solver}" if run else f"{point.solver}, {point.grid}"
                found.setdefault(name, []).append((point.nfe, value, min(seeds), max(seeds)))
                sets = max(sets, len(seeds))
    legend = f"bands: least to most of {sets} seeds" if sets > 1 else None
    return plotting.plot(title, EVALUATIONS, "distance", _banded(found), caption, evaluations_axis, legend=legend)


def _banded(found: dict[str, list[tuple[int, float, float, float]]]) -> list[Line]:
    """Lines of (evaluations, value, lower and upper end of its band)."""
    return [Line(name, [point[:2] for point in line], [point[2:] for point in line]) for name, line in found.items()]


def averages(found: EmaResult) -> dict[str, Plot]:
    """The plots of what ``fdtrain evaluate ema`` has measured, by name: against the relative length of the average.

    The point without a length is the run's own average, a line. The band is the standard error of the difference to it.
    """
    own = next(point for point in found.points if point.length is None)
    chosen = sorted((point.length, point) for point in found.points if point.length is not None)
    bits = [(length, point.bits_per_dim, point.error_difference or 0.0) for length, point in chosen]
    on = f"{counted(found.images, 'image')} of {short(found.split)}, step {short(found.step)}"
    lines = [Line("chosen afterwards", [b[:2] for b in bits], [(b - error, b + error) for _, b, error in bits])]

    def against(y: str, title: str, lines: list[Line], value: float | None, what: str) -> Plot:
        level = Level(value or 0.0, "the average of ema.decay", 1, "--")
        caption = f"{what} against the relative length of the average of the weights. {title}."
        return plotting.plot(title, LENGTH, y, lines, caption, levels=[level])

    plots = {"bits_per_dim": against("bits/dim", on, lines, own.bits_per_dim, "Bits/dim")}
    if found.distance:
        on = f"{found.samples:,} samples to {short(found.split)}, step {short(found.step)}"
        lines = [Line("chosen afterwards", [(length, point.distance or 0.0) for length, point in chosen])]
        what = f"{found.distance} of samples to the data"
        plots["distance"] = against(found.distance, on, lines, own.distance, what)
    return plots


def by_time(strata: Strata, on: str) -> dict[str, Plot]:
    """The bound's integrand by time, with its standard error over images, and the variance of one image's loss, with
    its means with and without strata."""
    middles = [0.5 * (a + b) for a, b in pairwise(strata.t_edges)]
    band = [(m - 2 * e, m + 2 * e) for m, e in zip(strata.mean, strata.error)]
    integral = [Line("mean and two standard errors over images", list(zip(middles, strata.mean)), band)]
    variance = [Line("within the stratum", list(zip(middles, strata.variance)))]
    means = [
        Level(strata.variance_within, "stratified times: mean within strata", 2),
        Level(strata.variance_iid, "independent times", 1, "--"),
    ]
    title, unit = "The bound's integral by time", "bits/dim per unit of the time quantile"
    caption = (
        "The bound's integral by time, with two standard errors over images. Its mean over the time quantile, and the "
        f"standard normal's part, make the bound. {on}"
    )
    plots = {"integrand": plotting.plot(title, "t", unit, integral, caption, time_axis)}
    title = "Variance of one image's loss by time"
    caption = f"Variance of one image's estimate by time, and what strata save of it. {on}"
    in_logs = partial(time_axis, log=True)
    return plots | {"variance": plotting.plot(title, "t", "(bits/dim)²", variance, caption, in_logs, means)}


def histogram(values: list[float], mean: float, caption: str) -> Plot:
    """How many images have how many bits/dim."""

    def draw(axes) -> None:
        bins = min(40, max(5, round(len(values) ** 0.5)))
        axes.hist(values, bins=bins, color=COLOURS[0], alpha=0.7, linewidth=0)
        axes.axvline(mean, color=COLOURS[1], label=f"mean {mean:.4f}")
        axes.legend()

    return plotting.plot("Bits/dim of single images", "bits/dim", "images", [], caption, draw)


METRICS = {
    "images_per_second": (
        "Speed",
        "images/s",
        "Images per second of all processes, without evaluation, samples and checkpoints.",
    ),
    "gradient_norm": (
        "Gradient norm",
        "nats per dimension",
        "Norm of the gradient before clipping: the mean over the steps of a line of the log.",
    ),
    "lr": ("Learning rate", "rate", "Learning rate."),
}
"""Of the log's numbers ``train/NAME``: title, unit and caption of the plot."""


def training(runs: Runs) -> dict[str, Plot]:
    """What the logs of runs say, by name: a line for each."""
    plots, scale = {}, partial(steps_axis, first=0.8)
    mean = ", mean over seeds" if any(len(seeds) > 1 for seeds in runs.values()) else ""
    if lines := _held_out(runs):
        bands = "" if mean else " with two standard errors over images"
        caption = f"Bits/dim of held-out images by the averaged weights{bands}{mean}."
        plots["held_out"] = plotting.plot("Bits/dim of held-out images", "step", "bits/dim", lines, caption, scale)
    # Earlier versions logged it as the loss, which it is.
    batches = {n: _series(seeds, "train/bits_per_dim") or _series(seeds, "train/loss") for n, seeds in runs.items()}
    if lines := _lines(batches):
        caption = f"Bits/dim of training batches{mean}."
        plots["training"] = plotting.plot("Bits/dim of training batches", "step", "bits/dim", lines, caption, scale)
    keys = {key for seeds in runs.values() for run in seeds for line in run.metrics for key in line}
    caption = "Frechet distance of a few samples to the training images while training: it shows the trend alone."
    drawn = {
        key: (f"Samples while training, {key.removeprefix('frechet/')}", "Frechet distance", caption)
        for key in sorted(keys)
        if key.startswith("frechet/")
    }
    for key, (title, unit, caption) in (drawn | {f"train/{name}": texts for name, texts in METRICS.items()}).items():
        if lines := _lines({name or title: _series(seeds, key) for name, seeds in runs.items()}):
            scale = partial(steps_axis, first=1.0, log=key.startswith("frechet/") or key == "train/gradient_norm")
            name = key.removeprefix("train/").replace("/", "_")
            plots[name] = plotting.plot(title, "step", unit, lines, caption, scale)
    return plots


def _series(seeds: list[RunFolder], metric: str) -> list[tuple[float, float]]:
    """(step, value) of a metric, the mean over the runs that have logged it."""
    by_step: dict[float, list[float]] = {}
    for run in seeds:
        for step, value in run.series(metric):
            by_step.setdefault(step, []).append(value)
    return [(step, statistics.mean(values)) for step, values in sorted(by_step.items())]


def _lines(points: dict[str, list[tuple[float, float]]]) -> list[Line]:
    """Each run in the same colour in every plot, whether or not the others have what is drawn."""
    return [Line(name, found, number=number) for number, (name, found) in enumerate(points.items()) if found]


def _held_out(runs: Runs) -> list[Line]:
    """By run and split; several runs' splits are named where they differ. Bands are those of single runs."""
    splits = sorted({split for seeds in runs.values() for run in seeds for split in run.held_out()})
    lines = []
    for number, (name, seeds) in enumerate(runs.items()):
        for split in splits:
            points = _series(seeds, f"{split}/bits_per_dim")
            parts = [name] if name and len(splits) == 1 else [name, split]
            found = seeds[0].held_out().get(split, []) if len(seeds) == 1 else []
            band = [(bits - 2 * error, bits + 2 * error) for _, bits, error in found] or None
            if points:
                style = number + len(COLOURS) * splits.index(split)
                points = [(step, bits) for step, bits, _ in found] or points
                lines.append(Line(", ".join(filter(None, parts)), points, band, style))
    return lines


def compared_quality(points: dict[str, list[tuple[int, float, float]]], distance: str) -> Plot:
    """Distance against evaluations: ``(evaluations, distance, standard error over seeds)`` of each variant."""
    lines = {name: [(nfe, mean, mean - e, mean + e) for nfe, mean, e in found] for name, found in points.items()}
    title = "Distance of samples to the data"
    caption = f"{distance} against evaluations; bands: standard error over seeds."
    return plotting.plot(title, EVALUATIONS, "distance", _banded(lines), caption, evaluations_axis)


def compared_variance(points: dict[str, list[tuple[float, float]]]) -> Plot:
    """The variance of one image's estimate by time, a line for each variant."""
    title = "Variance of one image's estimate by time"
    caption = "Variance of one image's estimate of the bound by time, under each variant's own density."
    return plotting.plot(title, "t", "(bits/dim)²", _lines(points), caption, partial(time_axis, log=True))
