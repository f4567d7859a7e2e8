"""The one generator of pages: sections of tables, plots and pictures, as self-contained HTML or as GitHub's Markdown.

Pictures are embedded, nothing is fetched, no script runs, and whatever comes from a file is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fdtrain.evaluation.figures import Plot
from fdtrain.evaluation.pictures import Picture
from fdtrain.evaluation.wording import escaped

NONE = "-"
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Link:
    text: str
    address: str


@dataclass(frozen=True)
class Card:
    """A figure at the head of a page."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Table:
    """``numbers`` are the columns of values; the first ``own`` rows stand out. Columns may do without a head."""

    kind: ClassVar[str] = "table"
    head: list[str]
    rows: Sequence[Sequence[str | Link]]
    numbers: tuple[int, ...] = ()
    own: int = 0

    def without_empty_columns(self) -> "Table":
        """Without the columns that have a dash in every row."""
        there = [i for i in range(len(self.head)) if any(row[i] != NONE for row in self.rows)]
        return Table([self.head[i] for i in there], [[row[i] for i in there] for row in self.rows])


@dataclass(frozen=True)
class Figures:
    """Pictures and plots side by side; ``style`` is the class of their frame: ``figures``, ``images`` or ``path``."""

    kind: ClassVar[str] = "figures"
    shown: Sequence[Plot | Picture]
    style: str = "figures"
    title: str | None = None


@dataclass(frozen=True)
class Missing:
    """What is not there, and the command that makes it."""

    kind: ClassVar[str] = "missing"
    what: str
    command: str | None = None


@dataclass(frozen=True)
class File:
    kind: ClassVar[str] = "file"
    name: str
    content: str


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Table | Figures | Missing | File]
    note: str = ""

    @property
    def id(self) -> str:
        return self.title.lower().replace("/", " per ").replace(" ", "-")


def html(title: str, sections: list[Section], about: str = "", cards: list[Card] | None = None) -> str:
    """The page."""
    return TEMPLATES.get_template("page.html.jinja").render(
        title=title, about=about, cards=cards or [], sections=sections
    )


def markdown(title: str, sections: list[Section], about: str, plots: dict[int, str]) -> str:
    """Tables and plots of the page. ``plots`` are the names of the plots' files, by their identity."""
    lines = [f"# {title}", "", escaped(about), ""]
    for section in sections:
        body: list[str] = []
        for part in section.parts:
            if isinstance(part, Table):
                texts = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in part.rows]
                body += [_line(part.head), _line(["---"] * len(part.head)), *map(_line, texts), ""]
            elif isinstance(part, Figures):
                for plot in part.shown:
                    if name := plots.get(id(plot)):
                        body += [f"![{escaped(plot.caption)}]({name})", "", escaped(plot.caption), ""]
        if body:
            lines += [f"## {escaped(section.title)}", "", *([escaped(section.note), ""] if section.note else []), *body]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"
