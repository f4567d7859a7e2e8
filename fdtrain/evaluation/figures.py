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
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fdtrain.errors import printable
from fdtrain.evaluation.result import CurvePoint, CurveResult, EmaResult, Strata, write_file
from fdtrain.evaluation.run_folder import RunFolder
from fdtrain.evaluation.wording import counted, short

COLOURS = ("#2563a8", "#c2521d", "#2f7d4f", "#8a3f8f", "#9a7b12", "#4d5966")
STYLES = ("-", "--", ":", "-.")
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
Points = list[tuple[float, float]]
EVALUATIONS = "evaluations of the network per image"
LENGTH = "relative length of the average"


@dataclass(frozen=True)
class Line:
    """Points ``(x, y)`` with a name.

    ``errors`` of each make a band around it; ``number`` is that of its colour, by default its place among the lines.
    """

    name: str
    points: Points
    errors: Sequence[float] | Sequence[tuple[float, float]] | None = None
    number: int | None = None


@dataclass(frozen=True)
class Plot:
    """Lines with their bands, each in a colour or dashes of its own; few points are marked.

    ``x`` and ``y`` are what is on the axes, ``scale`` one of the functions below, which suits the axes to the lines,
    and ``legend`` its title: without one a single line needs none.
    """

    title: str
    x: str
    y: str
    lines: list[Line]
    caption: str
    scale: Callable[[Axes], object] = lambda axes: None
    legend: str | None = None

    def figure(self) -> Figure:
        with matplotlib.rc_context(LOOK):
            figure = Figure()
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            axes.set(title=self.title, xlabel=self.x, ylabel=self.y)
            for place, line in enumerate(self.lines):
                _draw(axes, line, place if line.number is None else line.number)
            self.scale(axes)
            if len(self.lines) > len(COLOURS):
                figure.set_size_inches(8.4, 4.4)
                figure.legend(loc="outside right upper", title=self.legend)
            elif self.legend or len(self.lines) > 1:
                axes.legend(title=self.legend)
        return figure

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
            figure = self.figure()
            for text in figure.findobj(Text):
                # SVG cannot have control characters.
                text.set_text(printable(text.get_text()))
            figure.savefig(to, **how)


def _draw(axes: Axes, line: Line, number: int) -> None:
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
    at, values = np.array(line.points, dtype=float).T
    axes.plot(at, values, style, color=colour, marker="o" if len(at) < 40 else None, ms=3.5, label=line.name)
    if line.errors is not None:
        lower, upper = np.array(line.errors, dtype=float).reshape(len(at), -1).T[[0, -1]]
        axes.fill_between(at, values - lower, values + upper, color=colour, alpha=0.2, linewidth=0)
        if len(at) == 1:
            axes.vlines(at, values - lower, values + upper, color=colour, alpha=0.5)


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


def level(name: str, value: float, like: Line) -> Line:
    """A horizontal line along another."""
    return Line(name, [(x, value) for x in (like.points[0][0], like.points[-1][0])])


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
    found: dict[str, list[tuple[float, float, list[float]]]] = {}
    for point in sorted(points, key=lambda point: (point.solver, str(point.grid), point.nfe)):
        if (value := getattr(point, key)) is not None:
            seeds = getattr(point, f"{key}_by_seed") or [value]
            found.setdefault(f"{point.solver}, {point.grid}", []).append((point.nfe, value, seeds))
    lines = [
        Line(name, [(nfe, value) for nfe, value, _ in line], [(y - min(seeds), max(seeds) - y) for _, y, seeds in line])
        for name, line in found.items()
    ]
    sets = max((len(seeds) for line in found.values() for *_, seeds in line), default=0)
    legend = f"bands: least to most of {sets} seeds" if sets > 1 else None
    return Plot(title, EVALUATIONS, "distance", lines, caption, evaluations_axis, legend)


def averages(found: EmaResult) -> dict[str, Plot]:
    """The plots of what ``fdtrain evaluate ema`` has measured, by name: against the relative length of the average.

    The point without a length is the run's own average, a line. The band is the standard error of the difference to it.
    """
    own = next(point for point in found.points if point.length is None)
    chosen = sorted((point.length, point) for point in found.points if point.length is not None)

    def against(key: str, y: str, what: str, title: str, errors: list[float] | None = None) -> Plot:
        line = Line("chosen afterwards", [(length, getattr(point, key) or 0.0) for length, point in chosen], errors)
        lines = [line, level("the average of ema.decay", getattr(own, key) or 0.0, line)]
        caption = f"{what} against the relative length of the average of the weights. {title}."
        return Plot(title, LENGTH, y, lines, caption)

    errors = [point.error_difference or 0.0 for _, point in chosen]
    at = f"{short(found.split)}, step {short(found.step)}"
    on = f"{counted(found.images, 'image')} of {at}"
    plots = {"bits_per_dim": against("bits_per_dim", "bits/dim", "Bits/dim", on, errors)}
    if found.distance:
        what, on = f"{found.distance} of samples to the data", f"{found.samples:,} samples to {at}"
        plots["distance"] = against("distance", found.distance, what, on)
    return plots


def by_time(strata: Strata, on: str) -> dict[str, Plot]:
    """The bound's integrand by time, with its standard error over images, and the variance of one image's loss, with
    its means with and without strata."""
    middles = [0.5 * (a + b) for a, b in pairwise(strata.t_edges)]
    points, errors = list(zip(middles, strata.mean)), [2 * error for error in strata.error]
    integral = [Line("mean and two standard errors over images", points, errors)]
    within = Line("within the stratum", list(zip(middles, strata.variance)))
    means = {"stratified times: mean within strata": strata.variance_within, "independent times": strata.variance_iid}
    lines = [within, *(level(name, value, within) for name, value in means.items())]
    title, unit = "The bound's integral by time", "bits/dim per unit of the time quantile"
    caption = (
        "The bound's integral by time, with two standard errors over images. Its mean over the time quantile, and the "
        f"standard normal's part, make the bound. {on}"
    )
    saved = f"Variance of one image's estimate by time, and what strata save of it. {on}"
    return {
        "integrand": Plot(title, "t", unit, integral, caption, time_axis),
        "variance": variance(lines, saved),
    }


def variance(lines: list[Line], caption: str) -> Plot:
    """The variance of one image's estimate by time."""
    scale = partial(time_axis, log=True)
    return Plot("Variance of one image's estimate by time", "t", "(bits/dim)²", lines, caption, scale)


BITS = {"train/bits_per_dim": ("Bits/dim of training batches", "bits/dim", "Bits/dim of training batches{mean}.")}
LOGGED = {
    "train/images_per_second": (
        "Speed",
        "images/s",
        "Images per second of all processes, without evaluation, samples and checkpoints.",
    ),
    "train/gradient_norm": (
        "Gradient norm",
        "nats per dimension",
        "Norm of the gradient before clipping: the mean over the steps of a line of the log.",
    ),
    "train/lr": ("Learning rate", "rate", "Learning rate."),
}
"""Of the log's numbers: title, unit and caption of the plot."""
FRECHET = "Frechet distance of a few samples to the training images while training: it shows the trend alone."


def training(runs: Runs) -> dict[str, Plot]:
    """What the logs of runs say, by name: a line for each."""
    plots, mean = {}, ", mean over seeds" if any(len(seeds) > 1 for seeds in runs.values()) else ""
    keys = {key for seeds in runs.values() for run in seeds for line in run.metrics for key in line}
    if lines := _held_out(runs, keys):
        bands = " with two standard errors over images" if any(line.errors for line in lines) else ""
        caption = f"Bits/dim of held-out images by the averaged weights{bands}{mean}."
        scale = partial(steps_axis, first=0.8)
        plots["held_out"] = Plot("Bits/dim of held-out images", "step", "bits/dim", lines, caption, scale)
    distances = {key: key.removeprefix("frechet/") for key in sorted(keys) if key.startswith("frechet/")}
    frechet = {key: (f"Samples while training, {of}", "Frechet distance", FRECHET) for key, of in distances.items()}
    for key, (title, unit, caption) in (BITS | frechet | LOGGED).items():
        # Each run in the same colour in every plot, whether or not the others have what is drawn.
        series = ((i, name or title, _series(seeds, key)) for i, (name, seeds) in enumerate(runs.items()))
        if lines := [Line(name, points, number=i) for i, name, points in series if points]:
            first = 0.8 if key in BITS else 1.0
            scale = partial(steps_axis, first=first, log=key in distances or key == "train/gradient_norm")
            name = "training" if key in BITS else key.removeprefix("train/").replace("/", "_")
            plots[name] = Plot(title, "step", unit, lines, caption.format(mean=mean), scale)
    return plots


def _series(seeds: list[RunFolder], metric: str) -> Points:
    """(step, value) of a metric, the mean over the runs that have logged it."""
    by_step: dict[float, list[float]] = {}
    for run in seeds:
        for step, value in run.series(metric):
            by_step.setdefault(step, []).append(value)
    return [(step, statistics.mean(values)) for step, values in sorted(by_step.items())]


def _held_out(runs: Runs, keys: set[str]) -> list[Line]:
    """By run and split, of what was logged under ``keys``; several runs' splits are named where they differ. Bands are
    those of single runs, as long as there are few."""
    splits = sorted({key.rpartition("/")[0] for key in keys if key.endswith("/bits_per_dim")} - {"train"})
    lines = []
    for number, (name, seeds) in enumerate(runs.items()):
        for place, split in enumerate(splits):
            if points := _series(seeds, f"{split}/bits_per_dim"):
                banded = len(seeds) == 1 and len(runs) <= len(COLOURS)
                logged = dict(seeds[0].series(f"{split}/standard_error")) if banded else {}
                errors = [2 * logged.get(step, 0.0) for step, _ in points] if logged else None
                title = name if name and len(splits) == 1 else ", ".join(filter(None, (name, split)))
                lines.append(Line(title, points, errors, number + len(COLOURS) * place))
    return lines
