"""The plots of results: of one run's, and of several runs' in the same axes."""

from itertools import pairwise

from fdtrain.evaluation import plotting
from fdtrain.evaluation.plotting import COLOURS, Line, Plot
from fdtrain.evaluation.result import ComparedVariant, CurvePoint, CurveResult, EmaResult, Strata
from fdtrain.evaluation.wording import counted, short


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
    figure, axes = plotting.axes(title, "evaluations of the network per image", "distance")
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for run, found in points.items():
        for point in sorted(found, key=lambda point: (point.solver, str(point.grid), point.nfe)):
            value = getattr(point, key)
            if value is not None:
                seeds = getattr(point, f"{key}_by_seed") or [value]
                name = f"{run}: {point.solver}" if run else f"{point.solver}, {point.grid}"
                lines.setdefault(name, []).append((point.nfe, value, min(seeds), max(seeds)))
    drawn = [
        Line(name, [(nfe, value) for nfe, value, _, _ in line], [(least, most) for _, _, least, most in line])
        for name, line in lines.items()
    ]
    plotting.draw(axes, drawn)
    every = [point for found in points.values() for point in found]
    sets = max(len(getattr(point, f"{key}_by_seed") or [0]) for point in every)
    plotting.counts_axis(axes, [point.nfe for point in every])
    plotting.log_values(axes)
    plotting.legend(figure, axes, f"bands: least to most of {sets} seeds" if sets > 1 else None)
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


def compared_training(variants: list[ComparedVariant]) -> Plot:
    """Bits/dim against steps, a line for each variant."""
    lines = [Line(v.name, [(float(step), bits) for step, bits in v.training]) for v in variants if v.training]
    figure = plotting.over_steps("Bits/dim while training", "bits/dim", lines, first=0.8)
    return Plot(figure, "Bits/dim while training, of held-out images by the averaged weights where the log has them.")


def compared_quality(variants: list[ComparedVariant], distance: str) -> Plot:
    """Distance against evaluations with its standard error, a line for each variant."""
    figure, axes = plotting.axes("Distance of samples to the data", "evaluations of the network per image", "distance")
    for i, v in enumerate(variant for variant in variants if variant.points):
        colour, style = plotting.line_style(i)
        nfe = [point.nfe for point in v.points]
        values, bars = [p.distance.mean for p in v.points], [p.distance.error or 0.0 for p in v.points]
        axes.errorbar(nfe, values, bars, fmt=style, marker="o", ms=3, capsize=2, color=colour, label=v.name)
    plotting.counts_axis(axes, [point.nfe for v in variants for point in v.points])
    plotting.log_values(axes)
    plotting.legend(figure, axes)
    return Plot(figure, f"{distance} against evaluations; bars: standard error over seeds.")


def compared_variance(variants: list[ComparedVariant]) -> Plot | None:
    """The variance of one image's estimate by time, a line for each variant that has it."""
    lines = []
    for v in variants:
        points = [(t, value) for t, value in zip(v.t_middles, v.variance_by_time) if value is not None]
        if points:
            lines.append(Line(v.name, points))
    if not lines:
        return None
    figure, axes = plotting.axes("Variance of one image's estimate by time", "t", "(bits/dim)²")
    plotting.draw(axes, lines)
    values = [value for line in lines for _, value in line.points if value > 0]
    plotting.log_values(axes, decades=bool(values) and max(values) >= 1000 * min(values))
    plotting.time_axis(axes, min(t for line in lines for t, _ in line.points))
    plotting.legend(figure, axes)
    caption = "Variance of one image's estimate of the bound by time, under each variant's own density."
    return Plot(figure, caption)


def _middles(edges: list[float]) -> list[float]:
    return [0.5 * (a + b) for a, b in pairwise(edges)]
