"""The equations of the documentation, drawn as vector graphics while the site is built: no script, no network.

A hook of mkdocs (mkdocs.yml). A fence named ``math`` holds one equation in the TeX that matplotlib reads; GitHub shows
the same fences by itself.
"""

from html import escape
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

EM = 20.0
"""Units of a letter's size."""
FONT = FontProperties(math_fontfamily="stix")
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def on_config(config: Any) -> Any:
    """Let the fences be read by :func:`equation`."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "equation", "format": equation})
    return config


def equation(source: str, *_: Any, **__: Any) -> str:
    """HTML of one equation, in the colour and the size of the text around it.

    Raises:
        ValueError: it cannot be read.
    """
    tex = " ".join(source.split())
    path = TextPath((0, 0), f"${tex}$", size=EM, prop=FONT)
    box = path.get_extents()
    pieces = []
    for points, code in path.iter_segments(simplify=False):
        ends = zip(points[::2], points[1::2]) if code != Path.CLOSEPOLY else ()
        pieces.append(COMMANDS[code] + " ".join(f"{x:.2f},{-y:.2f}" for x, y in ends))
    view = f"{box.x0:.2f} {-box.y1:.2f} {box.width:.2f} {box.height:.2f}"
    size = f"width:{box.width / EM:.2f}em;height:{box.height / EM:.2f}em"
    return (
        f'<div class="equation" style="overflow-x:auto;padding:.5em 2em"><svg role="img" viewBox="{view}" '
        f'style="{size};overflow:visible" fill="currentColor"><title>{escape(tex)}</title>'
        f'<path d="{"".join(pieces)}"/></svg></div>'
    )
