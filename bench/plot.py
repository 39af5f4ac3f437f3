"""Plots of a suite as SVG: speed-up over torch.nn, one panel per model and mode."""

import hashlib
import json
from dataclasses import dataclass, field
from math import ceil, floor, log2

from seqkernels import figures

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

# In points: the axes of a panel, what stands around them, the title above all and lines of text.
_WIDTH, _HEIGHT = 376, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 30, 18
_HEAD, _LINE = 38, 18
_LABEL_LINE = 12
_DASHES = (0, (4, 3))


@dataclass
class _Panel:
    """Points of one model in one mode.

    `points[name][x]` is (median, low, high) speed-up, `chosen[x]` the contestant that seqkernels
    dispatched to.
    """

    title: str
    labels: list[str] = field(default_factory=list)
    points: dict[str, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    targets: dict[int, float] = field(default_factory=dict)
    chosen: dict[int, str] = field(default_factory=dict)


def svg(document: dict) -> str:
    """Draw a suite's document."""
    with figures.style():
        return figures.to_svg(figure(document), fingerprint(document))


def fingerprint(data: object) -> str:
    """What a drawing records of the JSON that it shows."""
    text = json.dumps(data, sort_keys=True, allow_nan=False)
    return f"of data {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def figure(document: dict):
    """The figure that `svg` writes."""
    suite = SUITES.get(document["suite"])
    sweep = suite.sweep if suite else "case"
    panels, modes = _panels(document, sweep)
    names = [n for n in COLOURS if any(n in p.points for p in panels.values())]
    names += sorted({n for p in panels.values() for n in p.points} - set(names))
    titles = list(dict.fromkeys(key[0] for key in panels))
    marks = _legend(names)
    below = len(modes) == 1  # one panel wide, title and device do not fit beside each other
    legend_top = _HEAD + _LINE * below
    head = legend_top + _LINE * ceil(len(marks) / (2 * len(modes)))
    lines = max(len(label.split("\n")) for p in panels.values() for label in p.labels)
    step = _TOP + _HEIGHT + _BOTTOM + _LABEL_LINE * lines, _LEFT + _WIDTH + _RIGHT
    width, height = len(modes) * step[1], head + len(titles) * step[0]
    page = figures.figure(width, height)
    _write_head(page, document, width, height, below)
    page.legend(
        handles=marks,
        ncols=2 * len(modes),
        loc="upper left",
        bbox_to_anchor=(_LEFT / width, 1 - legend_top / height),
        borderpad=0,
        borderaxespad=0,
    )
    for row, title in enumerate(titles):
        for column, mode in enumerate(modes):
            if (title, mode) in panels:
                left, bottom = column * step[1] + _LEFT, head + row * step[0] + _TOP + _HEIGHT
                box = left / width, 1 - bottom / height, _WIDTH / width, _HEIGHT / height
                _draw(page.add_axes(box), panels[title, mode], names, lines=sweep != "case")
    return page


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


def _title_and_label(case: dict, sweep: str) -> tuple[str, str]:
    """Which panel a case belongs to, and what stands below its point."""
    if sweep == "hidden_size":
        title = f"{model_name(case)}, T={case['length']}, N={case['batch']}"
        return title, f"H={case['hidden_size']}"
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
    if case["input_size"] != case["hidden_size"]:
        size = f"I={case['input_size']} {size}"
    lines = f"T={case['length']}", f"N={case['batch']}", size, ", ".join(extra)
    return model_name(plain), "\n".join(filter(None, lines))


def _range(panel: _Panel) -> tuple[int, int]:
    """Powers of two that enclose all points, with room for at least half and twice."""
    values = [v for points in panel.points.values() for point in points.values() for v in point]
    values += [*panel.targets.values(), 0.75, 1.5]
    return floor(log2(min(values)) - 0.05), ceil(log2(max(values)) + 0.05)


def _write_head(page, document: dict, width: float, height: float, below: bool) -> None:
    """What was measured, and beside or `below` it on what."""
    device = document["device"]
    where = device["name"]
    if device["type"] == "cpu":
        where += f", {device['threads']} thread{'s' if device['threads'] > 1 else ''}"
    where += f", torch {document['versions']['torch']}"
    heading = f"{document['suite']}: speed-up over torch.nn"
    page.text(_LEFT / width, 1 - 24 / height, heading, size=14, weight="bold")
    place = {"x": _LEFT / width, "y": 1 - (24 + _LINE) / height}
    if not below:
        place = {"x": 1 - _RIGHT / width, "y": 1 - 24 / height, "ha": "right"}
    page.text(s=where, **place)


def _draw(axes, panel: _Panel, names: list[str], lines: bool) -> None:
    low, high = _range(panel)
    count = len(panel.labels)
    axes.set_title(panel.title, loc="left")
    axes.set_yscale("log", base=2)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(2.0**low, 2.0**high))
    powers = [2.0**power for power in range(low, high + 1)]
    axes.set_yticks(powers, [f"{power:g}×" for power in powers])
    axes.minorticks_off()
    axes.set_xticks(range(count), panel.labels)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(False, axis="x")
    axes.axhline(1, color=_BASE_COLOUR, lw=1.5)
    half = min(0.4, 30 * count / _WIDTH)
    for x, wanted in panel.targets.items():
        axes.hlines(wanted, x - half, x + half, color=_TARGET_COLOUR, lw=1.5, linestyle=_DASHES)
    # The ring stands around the backend it was dispatched to, all others side by side.
    beside = [n for n in names if n in panel.points and n != OURS]
    step = min(11 * count / _WIDTH, 2 * half / max(1, len(beside)))
    shift = {n: (i - (len(beside) - 1) / 2) * step for i, n in enumerate(beside)}
    for name in [*beside, *([OURS] if OURS in panel.points else [])]:
        points = panel.points[name]
        places = [x + shift.get(panel.chosen[x] if name == OURS else name, 0) for x in points]
        medians, slow, quick = zip(*points.values(), strict=True)
        if name != OURS:
            colour = COLOURS.get(name, _OTHER)
            axes.vlines(places, slow, quick, color=colour, lw=1)
            if lines:
                axes.plot(places, medians, color=colour, alpha=0.5, lw=1)
        axes.plot(places, medians, linestyle="none", clip_on=False, **_mark(name))


def _mark(name: str) -> dict:
    colour = COLOURS.get(name, _OTHER)
    if name == OURS:
        return {"marker": "o", "ms": 11, "mfc": "none", "mec": colour, "mew": 1.6}
    return {"marker": "o", "ms": 6.5, "mfc": colour, "mec": "none"}


def _legend(names: list[str]) -> list:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], ls="none", label=f"{n} (as dispatched)" if n == OURS else n, **_mark(n))
        for n in names
    ]
    marks.append(Line2D([], [], color=_BASE_COLOUR, lw=1.5, label=BASELINE))
    marks.append(Line2D([], [], color=_TARGET_COLOUR, lw=1.5, ls=_DASHES, label="target"))
    return marks
