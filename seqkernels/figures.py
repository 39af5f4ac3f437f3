"""Matplotlib figures as SVG text: the same drawing with the same matplotlib gives the same text."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 72  # to an inch: sizes below are in points, which is what a unit of an SVG file is
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "seqkernels",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
}
Line = tuple[str, Sequence[tuple[float, float]]]


def missing() -> str | None:
    """Why nothing can be drawn, in one sentence; None where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return 'plots need matplotlib: pip install "seqkernels[g2p]"'
    return None


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in points.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if reason := missing():
        raise ImportError(reason)
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _POINTS, height / _POINTS))


def style():
    """The context in which figures are filled and written."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def draw_lines(
    axes: Axes,
    title: str,
    x_label: str,
    y_label: str,
    lines: Iterable[Line],
    *,
    log_y: bool = False,
) -> None:
    """Draw named lines of points (x, y); several get a legend beside the axes.

    Args:
        axes: where.
        title: above the axes.
        x_label: below them.
        y_label: beside them.
        lines: name and points of each; what is not finite, or not positive on a logarithmic axis,
            is left out.
        log_y: a logarithmic y axis.
    """
    lines = list(lines)
    for name, points in lines:
        axes.plot(*zip(*points, strict=True) if points else ([], []), label=name)
    if log_y:
        axes.set_yscale("log", nonpositive="mask")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title)
    if len(lines) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def to_svg(page: Figure, source: str = "") -> str:
    """The figure as SVG text, with no date and no name of a program.

    Args:
        page: the figure, filled within `style`.
        source: recorded in the text beside the version of matplotlib; see `recorded`.
    """
    import matplotlib

    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    if source:
        metadata["Description"] = f"{source}, matplotlib {matplotlib.__version__}"
    text = io.StringIO()
    with style():
        page.savefig(text, format="svg", metadata=metadata)
    # Lines that end in spaces would be changed by editors and hooks.
    return re.sub(r" +$", "", text.getvalue(), flags=re.MULTILINE)


def recorded(text: str) -> tuple[str, str]:
    """(source, version of matplotlib) of what `to_svg` wrote; empty where there is none."""
    found = re.search(r"<dc:description>(.*), matplotlib (.*)</dc:description>", text)
    return (found[1], found[2]) if found else ("", "")
