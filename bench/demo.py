"""Tables and plots of the pronunciation demo, from the JSON that its runs wrote.

`bench/results/DEVICE/g2p-*.json` are files of `python -m seqkernels g2p --json`. Runs of the same
recipe, budget and threads that differ in their seed alone are one row.
"""

import functools
import json
import operator
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqkernels import figures
from seqkernels.g2p.console import PUBLISHED

from .plot import fingerprint

Run = dict[str, Any]


def stored(root: Path) -> dict[Path, Run]:
    """Every run of the demo under `root`, a folder of results, by path."""
    return {path: json.loads(path.read_text()) for path in sorted(root.glob("*/g2p-*.json"))}


def groups(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone, by falling budget."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        same = {"recipe": run["recipe"] | {"seed": None}}
        same |= {
            name: run[name] for name in ("model", "words", "threads", "processor", "processes")
        }
        found.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    return sorted(
        (sorted(group, key=lambda run: run["seed"]) for group in found.values()),
        key=lambda group: -group[0]["recipe"]["minutes"],
    )


def name_of(run: Run) -> str:
    """The model in words."""
    model = run["model"]
    attention = (
        "no attention" if model["attention"] == "none" else f"{model['attention']} attention"
    )
    library = "" if model["library"] == "seqkernels" else f", {model['library']}.nn"
    # Runs from before there could be several do not say how many.
    models = model.get("models", 1)
    count = f"{models} x " if models > 1 else ""
    together = " (together)" if models > 1 else ""
    return f"{count}{model['cell'].upper()} {model['hidden']}{together}, {attention}{library}"


def _values(group: list[Run], *names: str) -> list[float]:
    """A value of every run, by the names on the way to it."""
    return [functools.reduce(operator.getitem, names, run) for run in group]


def _median(group: list[Run], *names: str) -> float:
    return statistics.median(_values(group, *names))


def _both(group: list[Run], *names: str) -> str:
    """The median, and the values of the seeds where there are several."""
    middle = f"**{_median(group, *names):.2f}**"
    if len(group) == 1:
        return middle
    return f"{middle} ({', '.join(f'{value:.2f}' for value in _values(group, *names))})"


def brief(runs: Iterable[Run]) -> str:
    """Word error rates of every group beside the published ones."""
    rows = [(f"{name} (published)", "", f"{wer:.2f}", "", wer) for name, wer in PUBLISHED]
    for group in groups(runs):
        run = group[0]
        budget = f"{run['recipe']['minutes']:g} min, {run['threads']} threads"
        wer = _median(group, "test", "greedy", "wer")
        rows.append(
            (
                name_of(run),
                budget,
                _both(group, "test", "greedy", "wer"),
                f"{_median(group, 'test', 'beam', 'wer'):.2f}",
                wer,
            )
        )
    lines = ["| system | training | WER %, greedy | WER %, beam |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {' | '.join(cells)} |" for *cells, _ in sorted(rows, key=lambda row: -row[-1])]
    return "\n".join(lines)


def full(runs: Iterable[Run]) -> str:
    """What every group reached, and what it had."""
    lines = [
        "| model | minutes | seeds | epochs | tokens/s | processor time, min | "
        "WER %, greedy | PER %, greedy | WER %, beam | PER %, beam |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in groups(runs):
        cells = [
            name_of(group[0]),
            f"{group[0]['recipe']['minutes']:g}",
            ", ".join(str(run["seed"]) for run in group),
            f"{_median(group, 'epochs'):.1f}",
            f"{_median(group, 'training_tokens_per_second'):,.0f}",
            f"{_median(group, 'processor_minutes'):.1f}",
            _both(group, "test", "greedy", "wer"),
            _both(group, "test", "greedy", "per"),
            _both(group, "test", "beam", "wer"),
            _both(group, "test", "beam", "per"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speeds(runs: Iterable[Run]) -> str:
    """The runs that also timed the same steps with torch.nn."""
    lines = []
    for group in groups(runs):
        timed = [run for run in group if run["torch_tokens_per_second"]]
        if not timed:
            continue
        ours, theirs = (_median(timed, f"{p}tokens_per_second") for p in ("", "torch_"))
        lines.append(
            f"| {name_of(timed[0])} | {timed[0]['threads']} | {theirs:,.0f} | {ours:,.0f} | "
            f"**{ours / theirs:.2f}×** |"
        )
    head = ["| model | threads | torch.nn, tokens/s | seqkernels, tokens/s | ratio |"]
    head.append("| --- | ---: | ---: | ---: | ---: |")
    return "\n".join(head + lines) if lines else "Not measured yet."


def plot(runs: Iterable[Run]) -> str:
    """Word error rates on development words over the minutes of training, as SVG."""
    grouped = groups(runs)
    with figures.style():
        page = figures.figure(830, 400)
        page.set_layout_engine("constrained")
        axes = page.subplots()
        for number, group in enumerate(grouped):
            for i, run in enumerate(group):
                label = f"{name_of(run)}, {run['recipe']['minutes']:g} min" if i == 0 else None
                points = [(seconds / 60, wer) for seconds, wer, _ in run["history"]["dev"]]
                axes.plot(*zip(*points, strict=True), color=f"C{number}", lw=1.5, label=label)
        axes.set(xlabel="minutes", ylabel="WER %", xlim=(0, None))
        axes.set_title("Errors on development words, greedy; a line for each seed")
        axes.legend()
        return figures.to_svg(page, fingerprint([r["history"]["dev"] for g in grouped for r in g]))


def heading(run: Run) -> str:
    """Machine and words of a run, in one line."""
    words = run["words"]
    return (
        f"**{run['processor']}**, {run['threads']} threads, torch {run['torch']}; "
        f"{words['train']:,} words to train on, {words['test']:,} to test"
    )
