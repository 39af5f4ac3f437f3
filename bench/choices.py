"""What dispatch chose against what was fastest: the measurements that set its thresholds.

These are `_onednn_preferred` and the order of `BACKENDS` in seqkernels/dispatch.py, and for Triton
against stepwise the constants in seqkernels/triton/estimate.py.
"""

from collections import Counter
from dataclasses import dataclass

from seqkernels.dispatch import BACKENDS

from . import results
from .contestants import OURS
from .tables import model_name, row_of, sizes


@dataclass(frozen=True)
class Choice:
    """The backend of one case and mode.

    Attributes:
        where: suite, model, sizes and mode.
        chosen: the backend that ran.
        best: the one that was fastest when named.
        loss: time of the chosen one over that of the fastest.
        certain: the two ranges p20 to p80 do not meet.
    """

    where: str
    chosen: str
    best: str
    loss: float
    certain: bool


def choices(document: dict) -> list[Choice]:
    """Every case in which dispatch took one of several backends that were timed by name."""
    found = []
    for result in document["results"]:
        rows = {b.name: row_of(result, f"{OURS}.{b.name}") for b in BACKENDS}
        timed = {name: row["time_s"] for name, row in rows.items() if row is not None}
        ours = row_of(result, OURS)
        # A call that took several backends has no single time by name.
        if ours is None or len(timed) < 2 or ours["detail"] not in timed:
            continue
        chosen, best = ours["detail"], min(timed, key=lambda name: timed[name]["median"])
        where = (document["suite"], model_name(result["case"]), f"({sizes(result['case'])})")
        loss = timed[chosen]["median"] / timed[best]["median"]
        certain = timed[best]["p80"] < timed[chosen]["p20"]
        found.append(Choice(" ".join((*where, result["mode"])), chosen, best, loss, certain))
    return found


def pair_microseconds(found: list[dict]) -> float | None:
    """What a product and a cell kernel of `stepwise` cost at least, in microseconds; None unknown.

    Of the smallest case, where nothing but the host counts: `COMPILED_PAIR` of estimate.py.
    """
    costs = []
    for document in found:
        for result in document["results"]:
            row, case = row_of(result, f"{OURS}.stepwise"), result["case"]
            if row is None or result["mode"] != "inference" or case["kind"] != "sequence":
                continue
            steps = case["length"] * case["num_layers"] * (1 + case["bidirectional"])
            costs.append(row["time_s"]["median"] / steps * 1e6)
    return min(costs, default=None)


def report(found: list[dict]) -> str:
    """A list for every device: where dispatch lost, worst first, and the constants measured."""
    by_device: dict[str, list[dict]] = {}
    for document in found:
        by_device.setdefault(results.folder(document["device"]), []).append(document)
    return "\n\n".join(_device(name, own) for name, own in by_device.items())


def _device(name: str, found: list[dict]) -> str:
    known = [choice for document in found for choice in choices(document)]
    wrong = sorted((c for c in known if c.certain), key=lambda c: -c.loss)
    lines = [f"{name}: {len(known)} choices among timed backends, {len(wrong)} not the fastest"]
    lines += [f"  {c.loss:5.2f}  took {c.chosen}, not {c.best}: {c.where}" for c in wrong]
    pairs = Counter(f"{c.best} before {c.chosen}" for c in wrong)
    lines += [f"  {count} × {pair}" for pair, count in pairs.most_common()]
    pair = pair_microseconds(found)
    if pair is not None:
        lines.append(f"  COMPILED_PAIR of seqkernels/triton/estimate.py: {pair:.1f} µs")
    return "\n".join(lines)
