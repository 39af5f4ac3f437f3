"""Figures as SVG: well-formed, the same every time, axes that hold what can be drawn."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from seqkernels import figures


def a_chart(lines, **options):
    with figures.style():
        page = figures.figure(500, 300)
        page.set_layout_engine("constrained")
        axes = page.subplots()
        figures.draw_lines(axes, "<title>", "x", "y", lines, **options)
        return page, axes, figures.to_svg(page, "of data 1")


def test_points_that_cannot_be_drawn_are_left_out_and_texts_stay_texts():
    points = [(0, 1e-12), (1, 1.0), (2, 1e5), (3, 0.0), (4, math.nan), (5, -1.0)]
    page, axes, text = a_chart([("a < b", points), ("c & d", points[:2])], log_y=True)
    root = ElementTree.fromstring(text)
    assert (root.get("width"), root.get("height")) == ("500pt", "300pt")
    texts = {"".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"<title>", "x", "y", "a < b", "c & d"} <= texts
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log" and low < 1e-12 and high > 1e5
    box = axes.get_legend().get_window_extent()
    assert axes.bbox.x1 <= box.x0 and box.x1 <= page.bbox.x1


def test_the_same_drawing_gives_the_same_text_with_its_source():
    lines = [("line", [(0, 1), (1, 2)])]
    text = a_chart(lines)[2]
    assert text == a_chart(lines)[2] != a_chart([("line", [(0, 1), (1, 3)])])[2]
    source, version = figures.recorded(text)
    assert source == "of data 1" and version[0].isdigit()
    assert "<dc:date>" not in text and "<dc:creator>" not in text
    assert figures.recorded("<svg/>") == ("", "")


@pytest.mark.parametrize("lines", [[], [("none", [])]])
def test_a_chart_without_points_is_drawn(lines):
    ElementTree.fromstring(a_chart(lines)[2])
