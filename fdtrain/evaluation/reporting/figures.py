"""Pictures of results, with matplotlib's Agg renderer: no display is needed, and no global state is touched."""

from functools import partial
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fdtrain.evaluation.reporting.result import CurvePoint, EmaPoint, Strata, write_file

COLOURS = ("#2563a8", "#c2521d", "#2f7d4f", "#8a3f8f", "#9a7b12", "#4d5966")


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def quality(points: list[CurvePoint], key: str, title: str, path: Path) -> None:
    """``key`` of each point (distance or rms) against the number of evaluations, one line for each solver and grid.

    The bands reach from the least to the most over the seeds, where there are several.
    """
    figure, axes = _axes(title, "evaluations of the network per image", "distance")
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for point in points:
        value = getattr(point, key)
        if value is not None:
            seeds = getattr(point, f"{key}_by_seed") or [value]
            lines.setdefault(f"{point.solver}, {point.grid}", []).append((point.nfe, value, min(seeds), max(seeds)))
    for i, (name, line) in enumerate(sorted(lines.items())):
        style, colour = "-" if i < len(COLOURS) else "--", COLOURS[i % len(COLOURS)]
        nfe, values, least, most = zip(*sorted(line))
        axes.plot(nfe, values, style, marker="o", ms=4, color=colour, label=name)
        axes.fill_between(nfe, least, most, color=colour, alpha=0.15, linewidth=0)
    sets = max(len(getattr(point, f"{key}_by_seed") or [0]) for point in points)
    bands = f"bands: least to most of {sets} seeds" if sets > 1 else None
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({point.nfe for point in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    _log_values(axes)
    axes.legend(frameon=False, fontsize=8, title=bands, title_fontsize=8)
    write_file(path, partial(figure.savefig, format="png"))


def averages(points: list[EmaPoint], key: str, title: str, y: str, path: Path) -> None:
    """``key`` of each point (bits_per_dim or distance) against the relative length of its average.

    The point without a length is the run's own average: a line. The bars are standard errors of the difference to it.
    """
    figure, axes = _axes(title, "relative length of the average", y)
    own = next(point for point in points if point.length is None)
    chosen = sorted((point.length, point) for point in points if point.length is not None)
    values = [getattr(point, key) for _, point in chosen]
    bars = [point.error_difference or 0.0 for _, point in chosen] if key == "bits_per_dim" else None
    lengths = [length for length, _ in chosen]
    axes.axhline(getattr(own, key), color=COLOURS[1], linestyle="--", label="the average of ema.decay")
    axes.errorbar(lengths, values, bars, marker="o", ms=4, capsize=2, color=COLOURS[0], label="chosen afterwards")
    axes.legend(frameon=False, fontsize=8)
    write_file(path, partial(figure.savefig, format="png"))


def integrand(strata: Strata, path: Path) -> None:
    """The bound's integrand by time, with its standard error over images."""
    figure, axes = _axes("The bound's integral by time", "t", "bits/dim per unit of the time quantile")
    middles, mean, error = _middles(strata.t_edges), strata.mean, strata.error
    axes.fill_between(
        middles,
        [m - 2 * e for m, e in zip(mean, error)],
        [m + 2 * e for m, e in zip(mean, error)],
        color=COLOURS[0],
        alpha=0.2,
        linewidth=0,
        label="two standard errors over images",
    )
    axes.plot(middles, mean, color=COLOURS[0], marker="o", ms=3)
    axes.axhline(0, color="#666666", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    _time_axis(axes, middles)
    write_file(path, partial(figure.savefig, format="png"))


def variance(strata: Strata, path: Path) -> None:
    """The variance of one image's loss by time, and its mean with and without strata."""
    figure, axes = _axes("Variance of one image's loss by time", "t", "(bits/dim)$^2$")
    middles = _middles(strata.t_edges)
    axes.plot(middles, strata.variance, color=COLOURS[0], marker="o", ms=3, label="within the stratum")
    axes.axhline(strata.variance_within, color=COLOURS[2], label="stratified times: mean within strata")
    axes.axhline(strata.variance_iid, color=COLOURS[1], linestyle="--", label="independent times")
    axes.set_yscale("log")
    _log_values(axes)
    axes.legend(frameon=False, fontsize=8)
    _time_axis(axes, middles)
    write_file(path, partial(figure.savefig, format="png"))


def training(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Bits/dim against steps: ``curves`` by name."""
    figure, axes = _axes("", "step", "bits/dim")
    for i, (name, points) in enumerate(curves.items()):
        few = len(points) < 40
        axes.plot(*zip(*points), color=COLOURS[i], marker="o" if few else None, ms=4, label=name)
    values = sorted(value for points in curves.values() for _, value in points)
    # The first steps would otherwise take all the height.
    axes.set_ylim(values[0] - 0.05 * abs(values[0]), values[int(0.95 * (len(values) - 1))] * 1.1 + 0.01)
    axes.legend(frameon=False, fontsize=8)
    write_file(path, partial(figure.savefig, format="png"))


STYLES = ("-", "--", ":")


def _line_style(number: int) -> tuple[str, str]:
    """Colour and dashes of a line among many."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def _legend_beside(figure: Figure, axes: Axes, lines: int) -> None:
    """A legend within the axes if it is short, else beside them on a wider figure."""
    if lines <= len(COLOURS):
        axes.legend(frameon=False, fontsize=8)
    else:
        figure.set_size_inches(8.4, 4.4)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)


def compared_training(lines: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Bits/dim against steps, a line for each variant."""
    figure, axes = _axes("Bits/dim while training", "step", "bits/dim")
    for i, (name, points) in enumerate(lines.items()):
        colour, style = _line_style(i)
        axes.plot(*zip(*points), style, marker="o", ms=3, color=colour, label=name)
    values = sorted(value for points in lines.values() for _, value in points)
    # The first steps would otherwise take all the height.
    low, high = values[0], values[int(0.8 * (len(values) - 1))]
    axes.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.1 * (high - low) + 0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_beside(figure, axes, len(lines))
    write_file(path, partial(figure.savefig, format="png"))


def compared_quality(lines: dict[str, list[tuple[int, float, float | None]]], path: Path) -> None:
    """Distance against evaluations with its standard error, a line for each variant."""
    figure, axes = _axes("Distance of samples to the data", "evaluations of the network per image", "distance")
    for i, (name, points) in enumerate(lines.items()):
        nfe, values, errors = zip(*points)
        bars = [0.0 if error is None else error for error in errors]
        colour, style = _line_style(i)
        axes.errorbar(nfe, values, bars, fmt=style, marker="o", ms=3, capsize=2, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({nfe for points in lines.values() for nfe, _, _ in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    _log_values(axes)
    _legend_beside(figure, axes, len(lines))
    write_file(path, partial(figure.savefig, format="png"))


def compared_variance(lines: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """The variance of one image's estimate by time, a line for each variant."""
    figure, axes = _axes("Variance of one image's estimate by time", "t", "(bits/dim)$^2$")
    for i, (name, points) in enumerate(lines.items()):
        colour, style = _line_style(i)
        axes.plot(*zip(*points), style, marker="o", ms=3, color=colour, label=name)
    axes.set_yscale("log")
    values = [value for points in lines.values() for _, value in points if value > 0]
    if values and max(values) < 1000 * min(values):
        _log_values(axes)
    _time_axis(axes, [min(t for points in lines.values() for t, _ in points)])
    _legend_beside(figure, axes, len(lines))
    write_file(path, partial(figure.savefig, format="png"))


def _middles(edges: list[float]) -> list[float]:
    return [0.5 * (a + b) for a, b in pairwise(edges)]


def _log_values(axes: Axes) -> None:
    """Plain numbers at 1, 2, 5, 10: a range within one decade has ticks too."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _time_axis(axes: Axes, middles: list[float]) -> None:
    # Linear below the first stratum's end, logarithmic above: as the times are spread.
    axes.set_xscale("symlog", linthresh=2 * middles[0])
    axes.set_xlim(0, 1)
    ticks = [t for t in (0.001, 0.01, 0.1, 1.0) if t > 2 * middles[0]]
    axes.set_xticks([0.0, *ticks], ["0", *(f"{t:g}" for t in ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
