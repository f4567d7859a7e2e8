"""What all pages share: their templates, the colours of their plots, and links."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fdtrain.evaluation.plotting import COLOURS, DARK_COLOURS

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals |= {"plot_colours": COLOURS, "dark_plot_colours": DARK_COLOURS}


@dataclass(frozen=True)
class Link:
    text: str
    address: str
