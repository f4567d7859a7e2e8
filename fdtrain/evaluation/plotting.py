"""Plots, with matplotlib's renderers alone: no display is needed.

A page holds them as SVG whose colours are CSS variables, so that they follow its light or dark scheme; a file is a PNG
in the light one.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fdtrain.errors import printable
from fdtrain.evaluation.result import write_file

COLOURS = ("#2563a8", "#c2521d", "#2f7d4f", "#8a3f8f", "#9a7b12", "#4d5966")
DARK_COLOURS = ("#74aef0", "#f2935f", "#6cc794", "#d390d8", "#d8b845", "#a9b5c1")
"""Of lines, in the light scheme and in the dark one."""
STYLES = ("-", "--", ":")
TEXT, GRID = "#1c2127", "#c9ced4"
VARIABLES = {colour: f"plot-{i}" for i, colour in enumerate(COLOURS)} | {TEXT: "text", GRID: "line"}
"""The CSS variables by the colours that stand for them in a drawing."""
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
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
    def svg(self) -> Markup:
        """An element for an HTML page, as wide as there is room. Its text is escaped."""
        ET.register_namespace("", SVG)
        ET.register_namespace("xlink", XLINK)
        file = io.StringIO()
        self._render(file, format="svg", transparent=True, metadata={"Date": None})
        root = ET.fromstring(file.getvalue())
        for element in list(root):
            if element.tag == f"{{{SVG}}}metadata" or element.find(f"{{{SVG}}}style") is not None:
                root.remove(element)
        for size in ("width", "height"):
            del root.attrib[size]
        root.attrib |= {"role": "img", "aria-label": printable(self.caption)}
        for element in root.iter():
            # Other plots of the page have elements of the same name. What is referred to is named by its content.
            if element.tag == f"{{{SVG}}}g":
                element.attrib.pop("id", None)
            if style := element.get("style"):
                element.set("style", _in_variables(style))
        return Markup(ET.tostring(root, encoding="unicode"))

    def save(self, path: Path) -> None:
        """Write it as PNG.

        Raises:
            UserError: it cannot be written.
        """
        write_file(path, partial(self._render, format="png"))

    def _render(self, to: Path | io.StringIO, **how: Any) -> None:
        with matplotlib.rc_context(LOOK):
            for text in self.figure.findobj(Text):
                # SVG cannot have control characters.
                text.set_text(printable(text.get_text()))
            self.figure.savefig(to, **how)


def _in_variables(style: str) -> str:
    """A style attribute with CSS variables for colours, and the font of the page."""
    parts = (part.strip() for part in style.split(";"))
    style = "; ".join(part for part in parts if part and not part.startswith("font-family"))
    for colour, name in VARIABLES.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return style


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
