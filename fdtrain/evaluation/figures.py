"""The plots of results: of one run's, and of several runs' in the same axes."""

import statistics
from itertools import pairwise

from fdtrain.evaluation import plotting
from fdtrain.evaluation.plotting import COLOURS, Line, Plot
from fdtrain.evaluation.result import CurvePoint, CurveResult, EmaResult, Strata
from fdtrain.evaluation.run_folder import RunFolder
from fdtrain.evaluation.wording import counted, short

Runs = dict[str, list[RunFolder]]
"""Runs that differ by their seed alone, by the names of their lines."""


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
    return plots | {"integrand": integrand(found.strata, on), "variance": variance(found.strata, on)}


def quality(points: dict[str, list[CurvePoint]], key: str, title: str, caption: str) -> Plot:
    """``key`` of each point (distance or rms) against the number of evaluations, one line for each solver and grid.

    The bands reach from the least to the most over the seeds, where there are several.

    Args:
        points: by the name of their run, which is part of a line's name; it may be empty.
    """
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for run, found in points.items():
        for point in sorted(found, key=lambda point: (point.solver, str(point.grid), point.nfe)):
            value = getattr(point, key)
            if value is not None:
                seeds = getattr(point, f"{key}_by_seed") or [value]
                name = f"{run}: {point.solver}" if run else f"{point.solver}, {point.grid}"
                lines.setdefault(name, []).append((point.nfe, value, min(seeds), max(seeds)))
    sets = max(len(getattr(point, f"{key}_by_seed") or [0]) for found in points.values() for point in found)
    return _against_evaluations(lines, title, caption, f"bands: least to most of {sets} seeds" if sets > 1 else None)


def _against_evaluations(
    lines: dict[str, list[tuple[int, float, float, float]]], title: str, caption: str, legend: str | None = None
) -> Plot:
    """Lines of (evaluations, value, lower and upper end of its band)."""
    figure, axes = plotting.axes(title, "evaluations of the network per image", "distance")
    drawn = [
        Line(name, [(nfe, value) for nfe, value, _, _ in line], [(low, high) for _, _, low, high in line])
        for name, line in lines.items()
    ]
    plotting.draw(axes, drawn)
    plotting.counts_axis(axes, [point[0] for line in lines.values() for point in line])
    plotting.log_values(axes)
    plotting.legend(figure, axes, legend)
    return Plot(figure, caption)


def averages(found: EmaResult) -> dict[str, Plot]:
    """The plots of what ``fdtrain evaluate ema`` has measured, by name: against the relative length of the average.

    The point without a length is the run's own average, a line. The band is the standard error of the difference to it.
    """
    on = f"{counted(found.images, 'image')} of {short(found.split)}, step {short(found.step)}"
    shown = {"bits_per_dim": ("bits/dim", on, "Bits/dim")}
    if found.distance:
        title = f"{found.samples:,} samples to {short(found.split)}, step {short(found.step)}"
        shown["distance"] = (found.distance, title, f"{found.distance} of samples to the data")
    own = next(point for point in found.points if point.length is None)
    chosen = sorted((point.length, point) for point in found.points if point.length is not None)
    plots = {}
    for key, (y, title, what) in shown.items():
        figure, axes = plotting.axes(title, "relative length of the average", y)
        values = [(length, getattr(point, key)) for length, point in chosen]
        errors = [point.error_difference or 0.0 for _, point in chosen] if key == "bits_per_dim" else []
        band = [(value - error, value + error) for (_, value), error in zip(values, errors)]
        plotting.draw(axes, [Line("chosen afterwards", values, band)])
        axes.axhline(getattr(own, key), color=COLOURS[1], linestyle="--", label="the average of ema.decay")
        plotting.legend(figure, axes)
        plots[key] = Plot(figure, f"{what} against the relative length of the average of the weights. {title}.")
    return plots


def integrand(strata: Strata, on: str) -> Plot:
    """The bound's integrand by time, with its standard error over images."""
    figure, axes = plotting.axes("The bound's integral by time", "t", "bits/dim per unit of the time quantile")
    middles = _middles(strata.t_edges)
    band = [(m - 2 * e, m + 2 * e) for m, e in zip(strata.mean, strata.error)]
    plotting.draw(axes, [Line("mean and two standard errors over images", list(zip(middles, strata.mean)), band)])
    axes.axhline(0, color=COLOURS[5], linewidth=0.6)
    plotting.time_axis(axes, middles[0])
    caption = (
        "The bound's integral by time, with two standard errors over images. Its mean over the time quantile, and the "
        f"standard normal's part, make the bound. {on}"
    )
    return Plot(figure, caption)


def variance(strata: Strata, on: str) -> Plot:
    """The variance of one image's loss by time, and its mean with and without strata."""
    figure, axes = plotting.axes("Variance of one image's loss by time", "t", "(bits/dim)²")
    middles = _middles(strata.t_edges)
    plotting.draw(axes, [Line("within the stratum", list(zip(middles, strata.variance)))])
    axes.axhline(strata.variance_within, color=COLOURS[2], label="stratified times: mean within strata")
    axes.axhline(strata.variance_iid, color=COLOURS[1], linestyle="--", label="independent times")
    plotting.log_values(axes)
    plotting.legend(figure, axes)
    plotting.time_axis(axes, middles[0])
    return Plot(figure, f"Variance of one image's estimate by time, and what strata save of it. {on}")


def histogram(values: list[float], mean: float, caption: str) -> Plot:
    """How many images have how many bits/dim."""
    figure, axes = plotting.axes("Bits/dim of single images", "bits/dim", "images")
    bins = min(40, max(5, round(len(values) ** 0.5)))
    axes.hist(values, bins=bins, color=COLOURS[0], alpha=0.7, linewidth=0)
    axes.axvline(mean, color=COLOURS[1], label=f"mean {mean:.4f}")
    plotting.legend(figure, axes, "")
    return Plot(figure, caption)


def _middles(edges: list[float]) -> list[float]:
    return [0.5 * (a + b) for a, b in pairwise(edges)]


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
BANDS = "with two standard errors over images"


def training(run: RunFolder) -> list[Plot]:
    """What the log of one run says of its training."""
    runs = {"": [run]}
    lines = [Line("training batches", line.points) for line in _batches(runs)]
    lines += [Line(f"{line.name}, averaged weights", line.points, line.band) for line in _held_out(runs)]
    caption = f"Bits/dim of training batches, and of held-out images by the averaged weights {BANDS}."
    bits = [Plot(plotting.over_steps("Bits/dim", "bits/dim", lines), caption)] if lines else []
    return [*bits, *_logged(runs).values()]


def compared_training(runs: Runs) -> dict[str, Plot]:
    """What the logs of several runs say, by name: a line for each."""
    plots = {}
    if lines := _held_out(runs):
        single = all(len(seeds) == 1 for seeds in runs.values())
        caption = f"Bits/dim of held-out images by the averaged weights{f' {BANDS}' if single else ''}{_mean(runs)}."
        title = "Bits/dim of held-out images"
        plots["held_out"] = Plot(plotting.over_steps(title, "bits/dim", lines, first=0.8), caption)
    if lines := _batches(runs):
        figure = plotting.over_steps("Bits/dim of training batches", "bits/dim", lines, first=0.8)
        plots["training"] = Plot(figure, f"Bits/dim of training batches{_mean(runs)}.")
    return plots | _logged(runs)


def _mean(runs: Runs) -> str:
    return ", mean over seeds" if any(len(seeds) > 1 for seeds in runs.values()) else ""


def _logged(runs: Runs) -> dict[str, Plot]:
    """All but the likelihood: distances of samples, speed, gradient norm, rate."""
    keys = {key for seeds in runs.values() for run in seeds for line in run.metrics for key in line}
    caption = "Frechet distance of a few samples to the training images while training: it shows the trend alone."
    drawn = {
        key: (f"Samples while training, {key.removeprefix('frechet/')}", "Frechet distance", caption)
        for key in sorted(keys)
        if key.startswith("frechet/")
    }
    plots = {}
    for key, (title, unit, caption) in (drawn | {f"train/{name}": texts for name, texts in METRICS.items()}).items():
        lines = _lines({name or title: _series(seeds, key) for name, seeds in runs.items()})
        if lines:
            log = key.startswith("frechet/") or key == "train/gradient_norm"
            figure = plotting.over_steps(title, unit, lines, first=1.0, log=log)
            plots[key.removeprefix("train/").replace("/", "_")] = Plot(figure, caption)
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


def _batches(runs: Runs) -> list[Line]:
    # Earlier versions logged it as the loss, which it is.
    return _lines(
        {name: _series(seeds, "train/bits_per_dim") or _series(seeds, "train/loss") for name, seeds in runs.items()}
    )


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
    caption = f"{distance} against evaluations; bands: standard error over seeds."
    return _against_evaluations(lines, "Distance of samples to the data", caption)


def compared_variance(points: dict[str, list[tuple[float, float]]]) -> Plot:
    """The variance of one image's estimate by time, a line for each variant."""
    figure, axes = plotting.axes("Variance of one image's estimate by time", "t", "(bits/dim)²")
    plotting.draw(axes, _lines(points))
    values = [value for found in points.values() for _, value in found if value > 0]
    plotting.log_values(axes, decades=bool(values) and max(values) >= 1000 * min(values))
    plotting.time_axis(axes, min(t for found in points.values() for t, _ in found))
    plotting.legend(figure, axes)
    caption = "Variance of one image's estimate of the bound by time, under each variant's own density."
    return Plot(figure, caption)
