"""Plots of a suite as SVG: speed-up over torch.nn, one panel per model and mode.

Written by hand, without a plotting library, so that the same JSON gives the same bytes everywhere.
"""

from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log2

from .cases import SUITES
from .contestants import BASELINE, OURS
from .tables import model_name, row_of
from .targets import target

# One colour for a backend in every plot; seqkernels as dispatched is a ring around its backend.
COLOURS = {
    OURS: "#111827",
    f"{OURS}.native": "#0d9488",
    f"{OURS}.onednn": "#f59e0b",
    f"{OURS}.persistent": "#7c3aed",
    f"{OURS}.triton": "#2563eb",
    f"{OURS}.stepwise": "#64748b",
    f"{OURS}.reference": "#a8a29e",
    f"{OURS}.cells": "#0ea5e9",
    f"{OURS}.graph": "#84cc16",
    "torch.compile": "#db2777",
    f"{BASELINE}.graph": "#f87171",
    "FlashRNN": "#b45309",
    "Haste": "#4d7c0f",
    "TorchRL": "#be123c",
}
_OTHER = "#6b7280"
_BASE_COLOUR = "#dc2626"
_TARGET_COLOUR = "#9ca3af"

_PLOT_W, _PLOT_H = 380, 150  # the axes of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 62  # around them
_HEAD = 66  # title and a legend of one line
_LINE = 18  # every further line


@dataclass
class _Panel:
    """Points of one model in one mode.

    `points[name][x]` is (median, low, high) speed-up, `chosen[x]` the contestant that seqkernels
    dispatched to.
    """

    title: str
    labels: list[tuple[str, ...]] = field(default_factory=list)
    points: dict[str, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    targets: dict[int, float] = field(default_factory=dict)
    chosen: dict[int, str] = field(default_factory=dict)


def svg(document: dict) -> str:
    """Draw a suite's document."""
    suite = SUITES.get(document["suite"])
    sweep = suite.sweep if suite else "case"
    panels, modes = _panels(document, sweep)
    names = [n for n in COLOURS if any(n in p.points for p in panels.values())]
    names += sorted({n for p in panels.values() for n in p.points} - set(names))
    titles = list(dict.fromkeys(key[0] for key in panels))
    width = len(modes) * (_LEFT + _PLOT_W + _RIGHT)
    height = len(titles) * (_TOP + _PLOT_H + _BOTTOM)
    device = document["device"]
    where = device["name"]
    if device["type"] == "cpu":
        where += f", {device['threads']} thread{'s' if device['threads'] > 1 else ''}"
    heading = f"{document['suite']}: speed-up over torch.nn"
    where += f", torch {document['versions']['torch']}"
    # One panel wide, the two do not fit beside each other.
    below = 0 if 8.2 * len(heading) + 6.2 * len(where) < width - _LEFT - _RIGHT else _LINE
    legend, bottom = _legend(names, 46 + below, width)
    head = _HEAD + bottom - 46
    height += head
    place = {"x": _LEFT, "y": 24 + below} if below else {"x": width - _RIGHT, "y": 24}
    body = [
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 24, heading, size=15, weight="600"),
        _text(**place, text=where, anchor="start" if below else "end"),
        *legend,
    ]
    for row, title in enumerate(titles):
        for column, mode in enumerate(modes):
            if (title, mode) in panels:
                x = column * (_LEFT + _PLOT_W + _RIGHT) + _LEFT
                y = head + row * (_TOP + _PLOT_H + _BOTTOM) + _TOP
                body += _draw(panels[title, mode], x, y, names, lines=sweep != "case")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _panels(document: dict, sweep: str) -> tuple[dict[tuple[str, str], _Panel], list[str]]:
    panels: dict[tuple[str, str], _Panel] = {}
    modes: list[str] = []
    for result in document["results"]:
        case, mode = result["case"], result["mode"]
        title, label = _title_and_label(case, sweep)
        panel = panels.setdefault((title, mode), _Panel(f"{title}, {mode}"))
        if mode not in modes:
            modes.append(mode)
        x = len(panel.labels)
        panel.labels.append(label)
        base = row_of(result, BASELINE)
        for row in result["contestants"]:
            if base is None or row["name"] == BASELINE or row["time_s"] is None:
                continue
            reference, times = base["time_s"]["median"], row["time_s"]
            if row["name"] == OURS:
                panel.chosen[x] = f"{OURS}.{row['detail']}"
            panel.points.setdefault(row["name"], {})[x] = (
                reference / times["median"],
                reference / times["p80"],
                reference / times["p20"],
            )
        wanted = target(document["suite"], case, mode, document["device"]["type"])
        if wanted is not None:
            panel.targets[x] = wanted
    return panels, modes


def _title_and_label(case: dict, sweep: str) -> tuple[str, tuple[str, ...]]:
    """Which panel a case belongs to, and what stands below its point."""
    if sweep == "hidden_size":
        title = f"{model_name(case)}, T={case['length']}, N={case['batch']}"
        return title, (f"H={case['hidden_size']}",)
    plain = {**case, "num_layers": 1, "bidirectional": False, "vocabulary": 0}
    if case["kind"] == "decode":
        plain["kind"] = "cell"
    extra = []
    if case["num_layers"] > 1:
        extra.append(f"{case['num_layers']} layers")
    if case["bidirectional"]:
        extra.append("2 directions")
    if case["vocabulary"]:
        extra.append(f"V={case['vocabulary']}")
    size = f"H={case['hidden_size']}"
    return model_name(plain), (
        f"T={case['length']}",
        f"N={case['batch']}",
        size if case["input_size"] == case["hidden_size"] else f"I={case['input_size']} {size}",
        ", ".join(extra),
    )


def _range(panel: _Panel) -> tuple[int, int]:
    """Powers of two that enclose all points, with room for at least half and twice."""
    values = [v for points in panel.points.values() for point in points.values() for v in point]
    values += [*panel.targets.values(), 0.75, 1.5]
    return floor(log2(min(values)) - 0.05), ceil(log2(max(values)) + 0.05)


def _draw(panel: _Panel, left: float, top: float, names: list[str], lines: bool) -> list[str]:
    low, high = _range(panel)

    def height(value: float) -> float:
        return top + _PLOT_H * (high - log2(value)) / (high - low)

    count = len(panel.labels)
    places = [left + _PLOT_W * (i + 0.5) / count for i in range(count)]
    right = left + _PLOT_W
    out = [_text(left, top - 10, panel.title, size=12, weight="600")]
    for power in range(low, high + 1):
        y = height(2.0**power)
        out.append(_line(left, y, right, y, "#e5e7eb"))
        out.append(_text(left - 6, y + 4, f"{2.0**power:g}×", anchor="end", size=10))
    out.append(_line(left, height(1), right, height(1), _BASE_COLOUR, width=1.5))
    for x, label in zip(places, panel.labels, strict=True):
        for i, line in enumerate(label):
            out.append(_text(x, top + _PLOT_H + 14 + 12 * i, line, anchor="middle", size=10))
    half = min(30.0, _PLOT_W / count / 2 - 4)
    for i, wanted in panel.targets.items():
        y = height(wanted)
        out.append(_line(places[i] - half, y, places[i] + half, y, _TARGET_COLOUR, 1.5, "4 3"))
    # The ring stands around the backend it was dispatched to, all others side by side.
    beside = [n for n in names if n in panel.points and n != OURS]
    step = min(11.0, 2 * half / max(1, len(beside)))
    shift = {n: (i - (len(beside) - 1) / 2) * step for i, n in enumerate(beside)}
    for name in [*beside, *([OURS] if OURS in panel.points else [])]:
        colour = COLOURS.get(name, _OTHER)
        points = panel.points[name]
        if lines and len(points) > 1 and name != OURS:
            at = [(places[i] + shift[name], height(p[0])) for i, p in points.items()]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>'
            )
        for i, (median, slow, quick) in points.items():
            x = places[i] + shift.get(panel.chosen[i] if name == OURS else name, 0)
            if name != OURS:
                out.append(_line(x, height(slow), x, height(quick), colour))
            out.append(_mark(x, height(median), name))
    return out


def _legend(names: list[str], y: float, width: float) -> tuple[list[str], float]:
    """The legend in as many lines as it needs, and the height of the last."""
    out, x = [], float(_LEFT)

    def place(text: str, mark: float) -> float:
        """Where the next entry begins; a mark takes so much before its text."""
        nonlocal x, y
        wide = mark + 12 + 6.2 * len(text)
        if x > _LEFT and x + wide - 12 > width:
            x, y = float(_LEFT), y + _LINE
        x += wide
        return x - wide

    for name in names:
        text = f"{name} (as dispatched)" if name == OURS else name
        at = place(text, 14)
        out += [_mark(at + 5, y, name), _text(at + 14, y + 4, text)]
    for text, *style in ((BASELINE, _BASE_COLOUR, 1.5), ("target", _TARGET_COLOUR, 1.5, "4 3")):
        at = place(text, 23)
        out += [_line(at, y, at + 18, y, *style), _text(at + 23, y + 4, text)]
    return out, y


def _mark(x: float, y: float, name: str) -> str:
    colour = COLOURS.get(name, _OTHER)
    if name == OURS:
        style = f'r="5.5" fill="none" stroke="{colour}" stroke-width="1.6"'
    else:
        style = f'r="3.4" fill="{colour}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" {style}/>'


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 11, weight: str = "400"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="#374151">{escape(text)}</text>'
    )
