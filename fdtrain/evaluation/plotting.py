"""Plots, with matplotlib's renderers alone: no display is needed.

A page holds them as SVG whose colours are CSS variables, so that they follow its light or dark scheme; a file is a PNG
in the light one.
"""

import io
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

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


@dataclass(frozen=True)
class Line:
    """Points ``(x, y)`` with a name.

    ``band`` are the lower and the upper ``y`` of each, where there is an error; ``number`` is that of its colour, which
    is by default its place among the lines.
    """

    name: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float]] | None = None
    number: int | None = None


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
        _take_text_as_it_is(self.figure)
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fdtrain"}):
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        root = ET.fromstring(file.getvalue())
        for element in list(root):
            if element.tag == f"{{{SVG}}}metadata" or element.find(f"{{{SVG}}}style") is not None:
                root.remove(element)
        for size in ("width", "height"):
            del root.attrib[size]
        root.attrib |= {"role": "img", "aria-label": _printable(self.caption)}
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
        _take_text_as_it_is(self.figure)
        write_file(path, partial(self.figure.savefig, format="png"))


def _take_text_as_it_is(figure: Figure) -> None:
    # Names come from files: a dollar sign in one begins no formula, and SVG cannot have control characters.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(_printable(text.get_text()))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _in_variables(style: str) -> str:
    """A style attribute with CSS variables for colours, and the font of the page."""
    parts = (part.strip() for part in style.split(";"))
    style = "; ".join(part for part in parts if part and not part.startswith("font-family"))
    for colour, name in VARIABLES.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return style


def axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty figure of one pair of axes."""
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=TEXT)
    axes.set_xlabel(x, color=TEXT)
    axes.set_ylabel(y, color=TEXT)
    axes.tick_params(which="both", color=TEXT, labelcolor=TEXT)
    axes.spines[:].set_color(TEXT)
    axes.grid(color=GRID, alpha=0.6, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_style(number: int) -> tuple[str, str]:
    """Colour and dashes of a line among many."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def draw(axes: Axes, lines: list[Line]) -> None:
    """Lines with their bands, each in a colour or dashes of its own; few points are marked."""
    for place, line in enumerate(lines):
        colour, style = line_style(place if line.number is None else line.number)
        few = len(line.points) < 40
        axes.plot(*zip(*line.points), style, color=colour, marker="o" if few else None, ms=3.5, label=line.name)
        if line.band:
            lower, upper = ([ends[i] for ends in line.band] for i in (0, 1))
            at = [x for x, _ in line.points]
            axes.fill_between(at, lower, upper, color=colour, alpha=0.2, linewidth=0)
            if len(at) == 1:
                axes.vlines(at, lower, upper, color=colour, alpha=0.5)


def legend(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """A legend within the axes if it is short, else beside them on a wider figure; none of one line without a title."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) < 2 and title is None:
        return
    look = {"frameon": False, "fontsize": 8, "labelcolor": TEXT, "title": title, "title_fontsize": 8}
    if len(names) <= len(COLOURS):
        made = axes.legend(**look)
    else:
        figure.set_size_inches(8.4, 4.4)
        made = figure.legend(loc="outside right upper", **look)
    made.get_title().set_color(TEXT)


def over_steps(title: str, y: str, lines: list[Line], first: float = 0.95, log: bool = False) -> Figure:
    """Lines against training steps.

    Args:
        first: the share of the values, from below, that fixes the upper end of a linear axis: a run's first steps would
            otherwise take all the height.
        log: the axis is logarithmic.
    """
    figure, axes_ = axes(title, "step", y)
    draw(axes_, lines)
    values = sorted(value for line in lines for _, value in line.points)
    if log and values[0] > 0:
        log_values(axes_)
    else:
        low, high = values[0], values[int(first * (len(values) - 1))]
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes_.set_ylim(low - room, high + room)
    axes_.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes_.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend(figure, axes_)
    return figure


def counts_axis(axes: Axes, counts: list[int]) -> None:
    """A logarithmic axis of evaluations, with ticks at these numbers."""
    axes.set_xscale("log")
    counts = sorted(set(counts))
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())


def log_values(axes: Axes, decades: bool = False) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5, 10: a range within one decade has ticks too.

    ``decades``: of a wide range, with powers of ten alone.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator() if decades else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def time_axis(axes: Axes, first: float) -> None:
    """The axis of ``t``: linear below the end of the first stratum, twice its middle ``first``, and logarithmic above,
    as the times are spread."""
    axes.set_xscale("symlog", linthresh=2 * first)
    axes.set_xlim(0, 1)
    ticks = [t for t in (0.001, 0.01, 0.1, 1.0) if t > 2 * first]
    axes.set_xticks([0.0, *ticks], ["0", *(f"{t:g}" for t in ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
