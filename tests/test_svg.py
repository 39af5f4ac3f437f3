"""The small SVG writer: well-formed documents, axes that enclose the data."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from seqkernels import svg
from seqkernels.svg import HeatMap, LineChart, Series, page

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [3.0], [-7.3, 12.9], [1e-9, 2e-9], [99.7, 100.1], [5e6, 9e6], []]
)
def test_ticks_enclose_the_values_and_are_few(values):
    ticks = svg._ticks(values)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    if values:
        assert ticks[0] <= min(values) + 1e-9 * abs(min(values))
        assert ticks[-1] >= max(values) - 1e-9 * abs(max(values))


def test_lines_stay_inside_the_box_and_texts_are_escaped():
    points = [(0, 1e-12), (1, 1.0), (2, 1e5), (3, 0.0), (4, math.nan), (5, -1.0)]
    lines = [Series("a < b", points), Series("c & d", points[:2])]
    chart = LineChart("<title>", "x", "y", lines, log_y=True)
    root = ElementTree.fromstring(page([chart, chart], 500, 300))
    assert (root.get("width"), root.get("height")) == ("500", "600")
    drawn = list(root.iter(f"{NAMESPACE}polyline"))
    assert len(drawn) == 4
    for line, count in zip(drawn, (3, 2, 3, 2), strict=True):
        pairs = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        assert len(pairs) == count
        assert all(0 <= x <= 500 and 0 <= y <= 300 for x, y in pairs)
    texts = [text.text for text in root.iter(f"{NAMESPACE}text")]
    assert {"<title>", "a < b", "c & d", "1e5"} <= set(texts)


def test_a_heat_map_has_a_cell_for_each_value():
    chart = HeatMap("map", ("r", "s"), ("a", "b", "c"), [[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]])
    root = ElementTree.fromstring(page([chart]))
    cells = [rect for rect in root.iter(f"{NAMESPACE}rect") if rect.get("stroke")]
    assert len(cells) == 6
    assert cells[0].get("fill") == "rgb(255,255,255)"
    assert cells[2].get("fill") == "rgb(8,48,107)"


def test_a_chart_without_points_is_drawn():
    ElementTree.fromstring(page([LineChart("empty", "x", "y", [Series("none", [])])]))
