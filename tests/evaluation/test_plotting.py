"""Plots as elements of a page: well-formed whatever their texts are, in the page's colours, drawn alike each time."""

from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fdtrain.errors import printable
from fdtrain.evaluation import plotting
from fdtrain.evaluation.plotting import COLOURS, Line


def plot(name="a", values=(3.0, 2.0, 1.0), **settings):
    line = Line(name, list(enumerate(values, 1)), [(value - 0.1, value + 0.1) for value in values])
    lines = [line, Line("other", [(1, 2.0)])]
    return plotting.plot(name, "step", "bits/dim", lines, name, partial(plotting.steps_axis, **settings))


@pytest.mark.parametrize("name", ["<b>&\"'", "$\\frac$ #2563a8", "a\x01b\x1b", "]]>-->", "\u4e2d"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_name_is_text(name):
    root = ElementTree.fromstring(plot(name).svg)
    texts = ["".join(element.itertext()) for element in root.iter(f"{{{plotting.SVG}}}text")]
    assert printable(name) in texts


def test_colours_are_variables_with_the_light_ones_as_fallback():
    svg = plot().svg
    for colour in (*COLOURS[:2], plotting.TEXT, plotting.GRID):
        assert f", {colour})" in svg
        assert svg.count(colour) == svg.count(f", {colour})")
    # Nothing that would name or style elements of the page around it.
    assert "<style" not in svg
    assert 'id="figure_1"' not in svg
    assert "font-family" not in svg


def test_the_same_plot_is_the_same_text():
    assert plot().svg == plot().svg


def test_a_plot_as_png_is_in_the_light_colours(tmp_path):
    plot().save(tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert pixels.shape[:2] == (600, 960)
    assert (pixels == [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]).all(-1).any()


def test_the_first_steps_do_not_take_all_the_height():
    high = plot(values=(1e6, *np.linspace(3, 2, 60))).figure.axes[0].get_ylim()[1]
    assert 3 <= high < 4
    assert plot(values=(0.0, 1.0), log=True).figure.axes[0].get_yscale() == "linear"
