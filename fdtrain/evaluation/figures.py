"""Plots of results and of logs, of one run or of several in the same axes: SVG for a page, PNG as a file.

With matplotlib's renderers alone: no display is needed.
"""

import base64
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fdtrain.errors import printable
from fdtrain.evaluation.compared import Row
from fdtrain.evaluation.result import CurvePoint, CurveResult, EmaResult, Strata, write_file
from fdtrain.evaluation.run_folder import RunFolder
from fdtrain.evaluation.wording import counted, short

COLOURS = ("#2563a8", "#c2521d", "#2f7d4f", "#8a3f8f", "#9a7b12", "#4d5966")
STYLES = ("-", "--", ":")
TEXT, GRID = "#1c2127", "#c9ced4"
LOOK: dict[Any, Any] = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT),
    # Names come from files: a dollar sign in one begins no formula.
    "text.parse_math": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "grid.color": GRID,
    **dict.fromkeys(("grid.alpha", "grid.linewidth"), 0.6),
    **dict.fromkeys(("legend.fontsize", "legend.title_fontsize"), 8),
    "svg.fonttype": "none",
    "svg.hashsalt": "fdtrain",
}
"""matplotlib's settings of every plot."""
Runs = dict[str, list[RunFolder]]
"""Runs that differ by their seed alone, by the names of their lines; one run alone may have none."""
EVALUATIONS = "evaluations of the network per image"
LENGTH = "relative length of the average"


@dataclass(frozen=True)
class Line:
    """Points ``(x, y)`` with a name.

    ``band`` are the lower and the upper ``y`` of each, where there is an error; ``number`` is that of its colour, which
    is by default its place among the lines.
    """

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] | None = None
    number: int | None = None


class Level(NamedTuple):
    """A horizontal line; ``number`` is that of its colour."""

    value: float
    name: str
    number: int
    style: str = "-"


@dataclass(frozen=True)
class Plot:
    """A figure with its caption."""

    figure: Figure
    caption: str

    @property
    def source(self) -> str:
        """As an image of an HTML page, which shows its texts and runs nothing in it."""
        file = io.BytesIO()
        self._render(file, format="svg", transparent=True, metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"

    def save(self, path: Path) -> None:
        """Write it as PNG. Raises UserError: it cannot be written."""
        write_file(path, partial(self._render, format="png"))

    def _render(self, to: Path | io.BytesIO, **how: Any) -> None:
        with matplotlib.rc_context(LOOK):
            for text in self.figure.findobj(Text):
                # SVG cannot have control characters.
                text.set_text(printable(text.get_text()))
            self.figure.savefig(to, **how)


def plot(
    title: str,
    x: str,
    y: str,
    lines: list[Line],
    caption: str,
    scale: Callable[[Axes], object] = lambda axes: None,
    levels: Sequence[Level] = (),
    legend: str | None = None,
) -> Plot:
    """Lines with their bands, each in a colour or dashes of its own; few points are marked.

    Args:
        x, y: what is on the axes.
        scale: one of the functions below, which suits an axis to the lines.
        legend: its title. Without one a single line needs none.
    """
    with matplotlib.rc_context(LOOK):
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set(title=title, xlabel=x, ylabel=y)
        for place, line in enumerate(lines):
            _draw(axes, line, place if line.number is None else line.number)
        scale(axes)
        for value, name, number, style in levels:
            axes.axhline(value, color=COLOURS[number], linestyle=style, label=name)
        names = len(axes.get_legend_handles_labels()[1])
        if len(COLOURS) >= names >= (1 if legend else 2):
            axes.legend(title=legend)
        elif names > len(COLOURS):
            figure.set_size_inches(8.4, 4.4)
            figure.legend(loc="outside right upper", title=legend)
    return Plot(figure, caption)


def _draw(axes: Axes, line: Line, number: int) -> None:
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
    at, values = zip(*line.points)
    axes.plot(at, values, style, color=colour, marker="o" if len(at) < 40 else None, ms=3.5, label=line.name)
    if line.band:
        lower, upper = zip(*line.band)
        axes.fill_between(at, lower, upper, color=colour, alpha=0.2, linewidth=0)
        if len(at) == 1:
            axes.vlines(at, lower, upper, color=colour, alpha=0.5)


def _drawn(axes: Axes, of: int) -> list[float]:
    """The values along an axis (0: x, 1: y) of all lines, in order."""
    return sorted(value for line in axes.get_lines() for value in np.asarray(line.get_xydata())[:, of].tolist())


def steps_axis(axes: Axes, first: float = 0.95, log: bool = False) -> None:
    """Training steps.

    Args:
        first: the share of the values, from below, that fixes the upper end of a linear axis: a run's first steps would
            otherwise take all the height.
        log: the other axis is logarithmic.
    """
    values = _drawn(axes, 1)
    if log and values[0] > 0:
        log_values(axes)
    else:
        low, high = values[0], values[int(first * (len(values) - 1))]
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def evaluations_axis(axes: Axes) -> None:
    """Numbers of evaluations, with ticks at those that there are; both axes are logarithmic."""
    axes.set_xscale("log")
    counts = sorted({int(count) for count in _drawn(axes, 0)})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    log_values(axes)


def log_values(axes: Axes) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5, 10, so that a range within one decade has ticks too; at powers
    of ten alone over more than three decades."""
    values = [value for value in _drawn(axes, 1) if value > 0]
    wide = bool(values) and values[-1] >= 1000 * values[0]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator() if wide else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def time_axis(axes: Axes, log: bool = False) -> None:
    """The time ``t``: linear below the end of the first stratum, twice its middle, and logarithmic above, as the times
    are spread; ``log``: the other axis is logarithmic."""
    if log:
        log_values(axes)
    end = 2 * _drawn(axes, 0)[0]
    axes.set_xscale("symlog", linthresh=end)
    axes.set_xlim(0, 1)
    ticks = [t for t in (0.001, 0.01, 0.1, 1.0) if t > end]
    axes.set_xticks([0.0, *ticks], ["0", *(f"{t:g}" for t in ticks)])
    axes.xaxis.set_minor_locator(NullLocator())


def curves(found: CurveResult) -> dict[str, Plot]:
    """The plots of what ``fdtrain evaluate curve`` has measured, by name."""
    on = f"{counted(found.images, 'image')}, {short(found.split)} split, step {short(found.step)}."
    title = f"{found.distance} to {found.split}, {found.images:,} samples"
    caption = f"{found.distance} of samples to the data, against evaluations of the network. {on}"
    plots = {"quality": quality(found.points, "distance", title, caption)}
    if any(point.rms is not None for point in found.points):
        plots["ode"] = quality(
            found.points,
            "rms",
            "RMS distance to the fine ODE solution, pixels in -1..1",
            "Deterministic solvers: root mean square distance to a fine solution of the ODE "
            f"({found.reference.solver}, {found.reference.nfe} evaluations) from the same noise. {on}",
        )
    return plots | by_time(found.strata, on)


def quality(points: list[CurvePoint], key: str, title: str, caption: str) -> Plot:
    """``key`` of each point (distance or rms) against the number of evaluations, one line for each solver and grid.

    The bands reach from the least to the most over the seeds, where there are several.
    """
    found: dict[str, list[tuple[int, float, list[float]]]] = {}
    for point in sorted(points, key=lambda point: (point.solver, str(point.grid), point.nfe)):
        if (value := getattr(point, key)) is not None:
            seeds = getattr(point, f"{key}_by_seed") or [value]
            found.setdefault(f"{point.solver}, {point.grid}", []).append((point.nfe, value, seeds))
    lines = [
        Line(name, [(nfe, value) for nfe, value, _ in line], [(min(seeds), max(seeds)) for *_, seeds in line])
        for name, line in found.items()
    ]
    sets = max((len(seeds) for line in found.values() for *_, seeds in line), default=0)
    legend = f"bands: least to most of {sets} seeds" if sets > 1 else None
    return plot(title, EVALUATIONS, "distance", lines, caption, evaluations_axis, legend=legend)


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
        return plot(title, LENGTH, y, lines, caption, levels=[level])

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
    plots = {"integrand": plot(title, "t", unit, integral, caption, time_axis)}
    title = "Variance of one image's loss by time"
    caption = f"Variance of one image's estimate by time, and what strata save of it. {on}"
    in_logs = partial(time_axis, log=True)
    return plots | {"variance": plot(title, "t", "(bits/dim)²", variance, caption, in_logs, means)}


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
        plots["held_out"] = plot("Bits/dim of held-out images", "step", "bits/dim", lines, caption, scale)
    # Earlier versions logged it as the loss, which it is.
    batches = {n: _series(seeds, "train/bits_per_dim") or _series(seeds, "train/loss") for n, seeds in runs.items()}
    if lines := _lines(batches):
        caption = f"Bits/dim of training batches{mean}."
        plots["training"] = plot("Bits/dim of training batches", "step", "bits/dim", lines, caption, scale)
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
            plots[name] = plot(title, "step", unit, lines, caption, scale)
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
    splits = sorted({split for seeds in runs.values() for run in seeds for split in run.held_out_splits})
    lines = []
    for number, (name, seeds) in enumerate(runs.items()):
        for place, split in enumerate(splits):
            if points := _series(seeds, f"{split}/bits_per_dim"):
                errors = dict(seeds[0].series(f"{split}/standard_error")) if len(seeds) == 1 else {}
                halves = [(bits, 2 * errors.get(step, 0.0)) for step, bits in points]
                band = [(bits - half, bits + half) for bits, half in halves] if errors else None
                title = name if name and len(splits) == 1 else ", ".join(filter(None, (name, split)))
                lines.append(Line(title, points, band, number + len(COLOURS) * place))
    return lines


def compared_quality(points: dict[str, list[Row]], distance: str) -> Plot:
    """Distance against evaluations: the points of each variant, as a comparison's row has them."""
    lines = []
    for name, found in points.items():
        means = [(point["distance"]["mean"], point["distance"]["error"] or 0.0) for point in found]
        line = [(point["nfe"], mean) for point, (mean, _) in zip(found, means)]
        lines.append(Line(name, line, [(mean - error, mean + error) for mean, error in means]))
    title = "Distance of samples to the data"
    caption = f"{distance} against evaluations; bands: standard error over seeds."
    return plot(title, EVALUATIONS, "distance", lines, caption, evaluations_axis)


def compared_variance(points: dict[str, list[tuple[float, float]]]) -> Plot:
    """The variance of one image's estimate by time, a line for each variant."""
    title = "Variance of one image's estimate by time"
    caption = "Variance of one image's estimate of the bound by time, under each variant's own density."
    return plot(title, "t", "(bits/dim)²", _lines(points), caption, partial(time_axis, log=True))
