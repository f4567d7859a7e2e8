"""The one generator of pages: sections of tables, plots and pictures, as self-contained HTML or as GitHub's Markdown.

Pictures are embedded, nothing is fetched, no script runs, and whatever comes from a file is escaped.
"""

from collections.abc import Mapping, Sequence
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
    """Rows by the heads of their columns: a dash where a row has nothing, no column where none has anything.

    ``numbers`` are the columns of values; the first ``own`` rows stand out.
    """

    kind: ClassVar[str] = "table"
    rows: Sequence[Mapping[str, str | Link | None]]
    numbers: tuple[str, ...] = ()
    own: int = 0

    @property
    def head(self) -> list[str]:
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if any(row.get(name) for row in self.rows)]

    @property
    def cells(self) -> list[list[str | Link]]:
        head = self.head
        return [[row.get(name) or NONE for name in head] for row in self.rows]


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
                texts = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in part.cells]
                rows = [part.head, ["---"] * len(part.head), *texts]
                body += [*(f"| {' | '.join(map(escaped, row))} |" for row in rows), ""]
            elif isinstance(part, Figures):
                for plot in part.shown:
                    if name := plots.get(id(plot)):
                        body += [f"![{escaped(plot.caption)}]({name})", "", escaped(plot.caption), ""]
        if body:
            lines += [f"## {escaped(section.title)}", "", *([escaped(section.note), ""] if section.note else []), *body]
    return "\n".join(lines)
