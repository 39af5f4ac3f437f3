"""Markdown tables made from result documents alone."""

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from .cases import SUITES, Case
from .contestants import BASELINE, OURS
from .gpu.table import expected_ratio
from .roofline import traffic
from .targets import target


def row_of(result: dict, name: str) -> dict | None:
    """A contestant of a result, if it was timed."""
    for row in result["contestants"]:
        if row["name"] == name and row["time_s"] is not None:
            return row
    return None


def speed_up(result: dict, name: str = OURS) -> float | None:
    """Median time of torch.nn over that of a contestant."""
    base, ours = row_of(result, BASELINE), row_of(result, name)
    if base is None or ours is None:
        return None
    return base["time_s"]["median"] / ours["time_s"]["median"]


def model_name(case: dict) -> str:
    """The model of a case in words: "LSTM, packed", "GRU cell"."""
    words = [
        {"rnn_tanh": "RNN tanh", "rnn_relu": "RNN relu"}.get(case["cell"], case["cell"].upper())
    ]
    if case["kind"] == "cell":
        words[0] += " cell"
    if case["kind"] == "decode":
        words.append(f"decode, {case['vocabulary']} tokens")
    if case["num_layers"] > 1:
        words.append(f"{case['num_layers']} layers")
    if case["bidirectional"]:
        words.append("both directions")
    if case["proj_size"]:
        words.append(f"proj_size {case['proj_size']}")
    if case["rows"] != "padded":
        words.append(case["rows"])
    if case["dtype"] != "float32":
        words.append(case["dtype"])
    return ", ".join(words)


def sizes(case: dict) -> str:
    """T, N, I, H of a case."""
    return ", ".join(str(case[k]) for k in ("length", "batch", "input_size", "hidden_size"))


def heading(document: dict) -> str:
    """Device, versions and time of a document in one line."""
    device, versions = document["device"], document["versions"]
    parts = [f"**{device['name']}**"]
    if device["type"] == "cpu":
        threads = device["threads"]
        timed = "1 thread, its processor time" if threads == 1 else f"{threads} threads"
        parts.append(f"{timed}, {device['capability']}")
    else:
        parts.append(f"driver {device['driver']}, cuDNN {versions.get('cudnn')}")
    parts.append(f"torch {versions['torch']}")
    parts.append(f"commit {versions['commit']}, {document['settings']['time'][:10]}")
    if document["settings"]["quick"]:
        parts.append("a quick run")
    return ", ".join(parts)


def brief(document: dict) -> str:
    """One row per case: torch.nn against seqkernels as dispatched, inference and training."""
    modes = [
        m for m in ("inference", "training") if any(r["mode"] == m for r in document["results"])
    ]
    by_case: dict[str, dict[str, dict]] = {}
    for result in document["results"]:
        by_case.setdefault(result["case"]["id"], {})[result["mode"]] = result
    head = ["model", "T, N, I, H"]
    for mode in modes:
        head += [f"{mode}: torch.nn", "seqkernels", "speed-up"]
    rows = []
    for results in by_case.values():
        case = next(iter(results.values()))["case"]
        cells = [model_name(case), sizes(case)]
        for mode in modes:
            result = results.get(mode)
            cells += ["", "", ""] if result is None else _compared(result)
        rows.append(cells)
    notes = ["Times in ms, medians of interleaved runs, input projection included."]
    if any(_contended(r) for r in document["results"]):
        notes.append("\\* the machine was busy: the quickest quarter of the samples.")
    return "\n".join([markdown(head, rows, left=2), "", " ".join(notes)])


def summary(document: dict) -> str:
    """One row per model: the median speed-up of its cases, the least and the greatest."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in document["results"]:
        ratio = speed_up(result)
        if ratio is not None:
            modes = found.setdefault(model_name(result["case"]), {})
            modes.setdefault(result["mode"], []).append(ratio)
    modes = sorted({mode for of_model in found.values() for mode in of_model})
    rows = [[name, *(_spread(own.get(mode, [])) for mode in modes)] for name, own in found.items()]
    return markdown(["model", *(f"{mode}: median (range)" for mode in modes)], rows, left=1)


def full(document: dict) -> str:
    """One row per case and mode with everything derived from the measurement."""
    device = document["device"]["type"]
    head = ["model", "T, N, I, H", "mode", "torch.nn ms", "seqkernels ms", "p20–p80", "speed-up"]
    head += ["target", "runs", "µs a step", "GFLOP/s", "× floor", "first call ms"]
    head += ["weights + stream MB", "on chip + exchanged MB", "peak MB, nn → ours"]
    rows = []
    for result in document["results"]:
        case, base, ours = result["case"], row_of(result, BASELINE), row_of(result, OURS)
        wanted = target(document["suite"], case, result["mode"], device)
        cells = [model_name(case), sizes(case), result["mode"], *_compared(result)]
        if ours is None:
            rows.append([*cells[:5], "", "", _number(wanted), *[""] * 8])
            continue
        times = ours["time_s"]
        cells.insert(5, f"{_ms(times['p20'])}–{_ms(times['p80'])}")
        median, cost = times["median"], result["cost"]
        known = Case(**{name: value for name, value in case.items() if name != "id"})
        on_chip, exchanged = traffic(known, result["mode"])
        rows.append(
            [
                *cells,
                _number(wanted),
                (ours["detail"] or "").replace("|", "/"),
                f"{median / cost['steps'] * 1e6:.1f}",
                f"{cost['flops'] / median / 1e9:.0f}",
                f"{median / result['floor_s']:.1f}",
                _ms(ours["first_call_s"]),
                f"{cost['weight_bytes'] / 2**20:.1f} + {cost['stream_bytes'] / 2**20:.1f}",
                f"{on_chip / 2**20:.1f} + {exchanged / 2**20:.1f}",
                f"{_megabytes(base)} → {_megabytes(ours)}",
            ]
        )
    return markdown(head, rows, left=3)


def others(document: dict) -> str:
    """Speed-up over torch.nn of every contestant, and why some have none."""
    names = list(
        dict.fromkeys(
            row["name"]
            for r in document["results"]
            for row in r["contestants"]
            if row["name"] != BASELINE
        )
    )
    labels = {
        row["name"]: row["label"]
        for r in document["results"]
        for row in r["contestants"]
        if row["label"]
    }
    head = ["model", "T, N, I, H", "mode"]
    head += [f"{name} ({labels[name]})" if name in labels else name for name in names]
    reasons: dict[str, int] = {}
    rows = []
    for result in document["results"]:
        cells = [model_name(result["case"]), sizes(result["case"]), result["mode"]]
        refused = {row["name"]: row["refused"] for row in result["contestants"] if row["refused"]}
        for name in names:
            if name in refused:
                number = reasons.setdefault(f"{name}: {refused[name]}", len(reasons) + 1)
                cells.append(f"[{number}]")
            else:
                cells.append(_ratio(speed_up(result, name)))
        rows.append(cells)
    notes = [f"[{number}] {reason}" for reason, number in reasons.items()]
    return "\n\n".join([markdown(head, rows, left=3), "  \n".join(notes)]).rstrip()


def predictions(path: Path) -> str:
    """One row per headline case: microseconds of a step and speed-ups that are expected.

    Args:
        path: bench/gpu/predicted.json or another of its form.
    """
    expected = json.loads(path.read_text())
    known = {case.id: case.to_json() for case in SUITES["headline"].cases}
    rows = []
    for name, modes in expected.items():
        cells = [model_name(known[name]), sizes(known[name])]
        for mode, steps in modes.items():
            ratio = expected_ratio(expected, name, mode)
            cells += [f"{steps[BASELINE]:.1f}", f"{steps[OURS]:.1f}", _ratio(ratio)]
        rows.append(cells)
    head = ["model", "T, N, I, H", "inference: torch.nn µs", "seqkernels µs", "speed-up"]
    head += ["training: torch.nn µs", "seqkernels µs", "speed-up"]
    return markdown(head, rows, left=2)


def misses(documents: Iterable[dict]) -> str:
    """Every target that a measurement misses, and every contestant that was wrong."""
    lines = [line for document in documents for line in _misses(document)]
    return "\n".join(lines) or "None."


def _misses(document: dict) -> Iterator[str]:
    device = document["device"]
    start = f"- {device['name']}, {document['suite']}"
    for result in document["results"]:
        case, mode = result["case"], result["mode"]
        where = f"{start}: {model_name(case)} at ({sizes(case)}), {mode}"
        wanted = target(document["suite"], case, mode, device["type"])
        found = speed_up(result)
        if found is None:
            reasons = [
                r["refused"] for r in result["contestants"] if r["refused"] and r["name"] == OURS
            ]
            yield f"{where}: not timed: {reasons[0] if reasons else 'no baseline'}"
            continue
        base, ours = row_of(result, BASELINE), row_of(result, OURS)
        if wanted is not None and found < wanted:
            bound = base["time_s"]["median"] / result["floor_s"]
            reach = (
                f"; out of reach here: the products alone allow {_ratio(bound)}"
                if device["type"] == "cpu" and bound < wanted
                else ""
            )
            yield f"{where}: {_ratio(found)} against a target of {wanted:g}{reach}"
        peaks = base["peak_memory_bytes"], ours["peak_memory_bytes"]
        # Below a megabyte the peak is that of allocator and thread stacks.
        if mode == "training" and None not in peaks and peaks[1] > peaks[0] + 2**20:
            yield f"{where}: peak memory {_megabytes(ours)} MB, torch.nn {_megabytes(base)} MB"


def _compared(result: dict) -> list[str]:
    """Median of torch.nn, median of ours, speed-up; or why there is none."""
    base, ours = row_of(result, BASELINE), row_of(result, OURS)
    if base is None or ours is None:
        return [_ms(base and base["time_s"]["median"]), "refused", ""]
    star = "\\*" if _contended(result) else ""
    ratio = _ratio(speed_up(result)) + star
    return [_ms(base["time_s"]["median"]), _ms(ours["time_s"]["median"]), f"**{ratio}**"]


def _contended(result: dict) -> bool:
    rows = [row_of(result, name) for name in (BASELINE, OURS)]
    return any(row is not None and row["time_s"]["contended"] for row in rows)


def markdown(head: list[str], rows: list[list[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _ms(seconds: float | None) -> str:
    """Milliseconds with three digits."""
    if seconds is None:
        return ""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def _spread(ratios: list[float]) -> str:
    """Median, least and greatest of some speed-ups."""
    if not ratios:
        return ""
    middle = _ratio(statistics.median(ratios))
    return f"**{middle}** ({_ratio(min(ratios))[:-1]}–{_ratio(max(ratios))})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _megabytes(row: dict) -> str:
    value = row["peak_memory_bytes"]
    return "?" if value is None else f"{value / 2**20:.1f}"
