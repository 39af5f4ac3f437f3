"""Line charts and heat maps as SVG text, so that a plot needs no further package."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
_FONT = 'font-family="sans-serif" font-size="12"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 32, 44  # margins round the axes, in pixels


@dataclass(frozen=True)
class Series:
    """A named line: points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x axis.

    Attributes:
        title, x_label, y_label: texts.
        series: what to draw; points that are not finite, or not positive on a logarithmic axis, are
            left out.
        log_y: logarithmic y axis.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False

    def draw(self, width: int, height: int) -> str:
        """The chart as SVG elements within a box of the given size."""
        usable = [
            Series(
                line.name,
                [
                    (x, math.log10(y) if self.log_y else y)
                    for x, y in line.points
                    if math.isfinite(x) and math.isfinite(y) and (y > 0 or not self.log_y)
                ],
            )
            for line in self.series
        ]
        # Names stand to the right of the axes; about seven pixels a letter, after a short line.
        longest = max((len(line.name) for line in usable), default=0)
        right = width - _RIGHT - (34 + 7 * longest if len(usable) > 1 else 0)
        xs = _ticks([x for line in usable for x, _ in line.points])
        ys = _ticks([y for line in usable for _, y in line.points], whole=self.log_y)
        x_of = _scale(xs, _LEFT, right)
        y_of = _scale(ys, height - _BOTTOM, _TOP)
        parts = [_text(width / 2, 18, self.title, "middle", bold=True)]
        for x in xs:
            parts.append(_line(x_of(x), _TOP, x_of(x), height - _BOTTOM))
            parts.append(_text(x_of(x), height - _BOTTOM + 16, f"{x:g}", "middle"))
        for y in ys:
            label = f"1e{y:g}" if self.log_y else f"{y:g}"
            parts.append(_line(_LEFT, y_of(y), right, y_of(y)))
            parts.append(_text(_LEFT - 6, y_of(y) + 4, label, "end"))
        for i, line in enumerate(usable):
            colour = COLOURS[i % len(COLOURS)]
            points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            if len(usable) > 1:
                y = _TOP + 14 + 16 * i
                parts.append(_line(right + 8, y - 4, right + 28, y - 4, colour, 2))
                parts.append(_text(right + 34, y, line.name, "start"))
        parts.append(_text((_LEFT + right) / 2, height - 8, self.x_label, "middle"))
        middle = height / 2
        parts.append(
            f'<text x="14" y="{middle}" text-anchor="middle" {_FONT} '
            f'transform="rotate(-90 14 {middle})">{escape(self.y_label)}</text>'
        )
        return "\n".join(parts)


@dataclass(frozen=True)
class HeatMap:
    """A matrix of numbers from 0 to 1, white to blue, with a name for each row and column."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]

    def draw(self, width: int, height: int) -> str:
        """The map as SVG elements within a box of the given size."""
        cell_x = (width - _LEFT - _RIGHT) / max(len(self.columns), 1)
        cell_y = (height - _TOP - _BOTTOM) / max(len(self.rows), 1)
        parts = [_text(width / 2, 18, self.title, "middle", bold=True)]
        for i, (name, row) in enumerate(zip(self.rows, self.values, strict=True)):
            y = _TOP + i * cell_y
            parts.append(_text(_LEFT - 6, y + cell_y / 2 + 4, name, "end"))
            for j, value in enumerate(row):
                red, green, blue = (round(255 + (c - 255) * value) for c in (8, 48, 107))
                parts.append(
                    f'<rect x="{_LEFT + j * cell_x:.1f}" y="{y:.1f}" width="{cell_x:.1f}" '
                    f'height="{cell_y:.1f}" fill="rgb({red},{green},{blue})" stroke="#ddd"/>'
                )
        for j, name in enumerate(self.columns):
            x = _LEFT + (j + 0.5) * cell_x
            parts.append(_text(x, height - _BOTTOM + 16, name, "middle"))
        return "\n".join(parts)


def page(charts: Sequence[LineChart | HeatMap], width: int = 560, height: int = 320) -> str:
    """One SVG document with the charts below one another, each of the given size in pixels."""
    groups = [
        f'<g transform="translate(0 {i * height})">\n{chart.draw(width, height)}\n</g>'
        for i, chart in enumerate(charts)
    ]
    total = height * len(charts)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
            f'viewBox="0 0 {width} {total}">',
            f'<rect width="{width}" height="{total}" fill="white"/>',
            *groups,
            "</svg>\n",
        )
    )


def _ticks(values: Sequence[float], whole: bool = False) -> list[float]:
    """Round numbers that enclose the values, about six."""
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    if high == low:
        high = low + 1.0
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, end: float):
    """The map from data to pixels."""
    low, span = ticks[0], ticks[-1] - ticks[0]
    return lambda value: start + (value - low) / span * (end - start)


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT}{weight}>'
        f"{escape(text)}</text>"
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd", width: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )
