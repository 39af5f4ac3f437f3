"""The table that ends a call: speed against torch.nn, measured and predicted. Torch-free."""

import json
from pathlib import Path

from . import protocol

# Microseconds of a step expected before the measurement, {case id: {mode: {contestant: µs}}}.
PREDICTED = Path(__file__).with_name("predicted.json")
_HEAD = ("case and mode", "nn µs", "ours µs", "stepwise", "predicted", "launch", "ratio")
_HEAD += ("expected", "ran")
_NOTE = (
    "µs of a step (slope between the two lengths), as predicted by the plan, of the launches"
    " (intercept of ours); torch.nn over ours at the longer length; the backend that ran ours."
)


def times(record: dict, name: str) -> tuple[float, float, float] | None:
    """Seconds of a step, of the launches and of the longest call of a contestant that was timed."""
    points = [
        (m["case"]["length"], row["time_s"]["median"])
        for m in record["measured"]
        for row in m["contestants"]
        if row["name"] == name and row["time_s"] is not None
    ]
    if len(points) < 2:
        return None
    (long, whole), (short, part) = points[0], points[-1]
    step = (whole - part) / (long - short)
    return step, part - short * step, whole


def expected_ratio(expected: dict, case: str, mode: str) -> float | None:
    """The speed-up that was expected of a case, if one was."""
    steps = expected.get(case, {}).get(mode)
    return steps and steps["torch.nn"] / steps["seqkernels"]


def row(record: dict, expected: dict) -> list[str]:
    """One line of the table; empty where there is no number."""
    name = record["case"]
    case, _, mode = name.rpartition(" ")
    if "measured" not in record:
        return [name, *[""] * 5, record["result"], "", ""]
    theirs, ours, stepwise = (
        times(record, n) for n in ("torch.nn", "seqkernels", "seqkernels.stepwise")
    )
    predicted = [plan["step_ns"] for plan in record["plans"]]
    cells = [_us(theirs and theirs[0]), _us(ours and ours[0]), _us(stepwise and stepwise[0])]
    cells += [_us(None if None in predicted else sum(predicted) * 1e-9), _us(ours and ours[1])]
    ratio = f"{theirs[2] / ours[2]:.2f}" if theirs and ours else record["result"]
    wanted = expected_ratio(expected, case, mode)
    rows = record["measured"][0]["contestants"]
    ran = next((row["detail"] for row in rows if row["name"] == "seqkernels"), None)
    return [name, *cells, ratio, "" if wanted is None else f"{wanted:.2f}", ran or ""]


def table(path: Path, predicted: Path = PREDICTED) -> str:
    """The table of a ratios.jsonl; empty where there is none.

    Args:
        path: the file.
        predicted: what was expected before, as JSON.
    """
    found = protocol.records(path)
    if not found:
        return ""
    expected = json.loads(predicted.read_text()) if predicted.exists() else {}
    rows = [list(_HEAD), *(row(record, expected) for record in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in rows
    ]
    return "\n".join([*lines, _NOTE])


def _us(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.2f}"
