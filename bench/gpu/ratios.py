"""The headline suite: torch.nn, seqkernels as dispatched and its stepwise schedule, in turns.

Every case in both modes, at two lengths: the slope between them is the time of a step, the
intercept that of the launches. Beside them stands what the launch plan predicts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from .. import runner, timing
from ..cases import SUITES, Case
from ..contestants import OURS
from .machine import Machine

FILE = "ratios.jsonl"
SUITE = SUITES["headline"]


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every case of the suite once, with all its lengths, in each mode; what is alike once."""
    longest = max(case.length for case in SUITE.cases)
    alike = {}
    for case in SUITE.cases:
        if case.length == longest:
            alike.setdefault(machine.full_or_tiny(case, tiny(case)), case)
    for case in alike.values():
        for mode in case.modes:
            yield f"{case.id} {mode}", partial(ratio, machine, case, mode)


def lengths(case: Case) -> list[Case]:
    """The case at each of its lengths, the longest first."""
    return [c for c in SUITE.cases if replace(c, length=case.length) == case]


def ratio(machine: Machine, case: Case, mode: str) -> dict:
    """Check and time one case at every length; ours is wrong or refused: a failure with reason."""
    timer = timing.timer_for(machine.device)
    effort = machine.full_or_tiny(timing.QUICK, timing.Effort(3, 0.0, 0.0, 0.0))
    measured = []
    for full in lengths(case):
        own = machine.full_or_tiny(full, tiny(full))
        with timing.precision(own.dtype, machine.device):
            rows, _ = runner.measure(
                own,
                mode,
                machine.device,
                timer,
                effort,
                backends=SUITE.backends,
                with_memory=False,
            )
        measured.append({"case": own.to_json(), "contestants": rows})
    passes = (False, True)[: 1 + (mode == "training")]
    plans = [planned(machine, measured[0]["case"], backward) for backward in passes]
    record = {"mode": mode, "measured": measured, "plans": plans}
    refused = [r["refused"] for m in measured for r in m["contestants"] if r["name"] == OURS]
    if any(refused):
        record |= {"result": "failed", "reason": next(filter(None, refused))}
    return record


def tiny(case: Case) -> Case:
    """A case of the same kind that the emulator runs in moments."""
    dtype = "float32" if case.dtype == "tf32" else case.dtype  # a CPU has no TF32
    sizes = {"length": case.length // 64, "batch": min(case.batch, 3)}
    return replace(case, input_size=8, hidden_size=24, dtype=dtype, **sizes)


def planned(machine: Machine, case: dict, backward: bool) -> dict:
    """The plan of one pass in words, and the nanoseconds that it predicts for a step."""
    shape = case["cell"], case["dtype"], backward, case["batch"], case["hidden_size"]
    parts = {"layers": case["num_layers"], "directions": 1 + case["bidirectional"]}
    joint = machine.plan(*shape, **parts)
    if not joint["refusal"]:
        return {"text": joint["text"], "step_ns": joint["step_ns"]}
    alone = machine.plan(*shape)
    count = max(parts.values())
    if count == 1 or alone["refusal"]:
        return {"text": joint["refusal"], "step_ns": None}
    return {"text": f"{count} launches: {alone['text']}", "step_ns": count * alone["step_ns"]}
