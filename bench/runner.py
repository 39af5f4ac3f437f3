"""Run suites: prepare every contestant of a case, check it, time all in turns, write the JSON."""

import gc
import time
from dataclasses import asdict
from datetime import datetime, timezone

import torch

from seqkernels import dispatch

from . import check, memory, results, roofline
from .cases import Case, Suite
from .contestants import BASELINE, OURS, Contestant, Prepared, Refused, contestants
from .progress import Progress
from .timing import (
    QUICK,
    Effort,
    Timer,
    Times,
    calibrate,
    interleave,
    openmp_settings,
    precision,
    timer_for,
)
from .workload import Workload, torch_dtype
from .workload import results as named_results


def run_suite(
    suite: Suite,
    device: torch.device,
    effort: Effort,
    *,
    with_memory: bool = True,
    only: str = "",
    extra: tuple[str, ...] | None = None,
    deadline: float | None = None,
) -> dict:
    """Measure a suite on a device.

    Args:
        suite: what to measure.
        device: where.
        effort: how long.
        with_memory: measure peak memory too.
        only: a part of the ids of the cases to run; by default all run.
        extra: contestants instead of the suite's own extra ones.
        deadline: of `time.monotonic()`, after which no case begins; by default none.

    Returns:
        A document of bench/schema.json.
    """
    timer = timer_for(device)
    extra = suite.extra_on(device.type) if extra is None else extra
    cases = [case for case in suite.on(device.type) if only in case.id]
    document = {
        "schema": results.SCHEMA_VERSION,
        "suite": suite.name,
        "why": suite.why,
        "device": results.describe_device(device, calibrate(device, timer)),
        "versions": results.versions(),
        "settings": {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "quick": effort == QUICK,
            **asdict(effort),
            "openmp": openmp_settings(),
        },
        "results": [],
    }
    progress = Progress(sum(len(case.modes) for case in cases))
    left_out = []
    for case in cases:
        if deadline is not None and time.monotonic() > deadline:
            left_out.append(case.id)
            continue
        for mode in case.modes:
            progress.step(f"{suite.name}: {case.id} {mode}")
            with precision(case.dtype, device):
                rows, _ = measure(
                    case,
                    mode,
                    device,
                    timer,
                    effort,
                    extra=extra,
                    backends=suite.backends,
                    with_memory=with_memory,
                )
            document["results"].append(result(case, mode, rows, document["device"]))
    progress.close()
    if left_out:
        document["settings"]["left_out"] = left_out
    return document


def result(case: Case, mode: str, rows: list[dict], device: dict) -> dict:
    """An entry of a document's `results`.

    Args:
        case: what was measured.
        mode: "inference" or "training".
        rows: what `measure` returned for it.
        device: the document's part of that name.
    """
    return {
        "case": case.to_json(),
        "mode": mode,
        "checked_length": check.checked_length(case),
        "cost": roofline.cost(case, mode).to_json(),
        "floor_s": roofline.floor_seconds(case, mode, device["type"], device["calibration"]),
        "contestants": rows,
    }


def measure(
    case: Case,
    mode: str,
    device: torch.device,
    timer: Timer,
    effort: Effort,
    *,
    extra: tuple[str, ...] = (),
    backends: tuple[str, ...] | None = None,
    with_memory: bool = True,
) -> tuple[list[dict], dict[str, Times]]:
    """Check and time every contestant of one case in one mode.

    Returns:
        The `contestants` part of a document, in which one that cannot run or is wrong has a reason
        and no time; and the samples of all others, by name.
    """
    rows, calls = [], {}
    reference = check.expected(case, device, mode)
    torchs: dict[str, float] = {}
    work = Workload(case, device)
    for contestant in contestants(case, device, extra, backends):
        row, call = _admit(contestant, work, mode, timer, reference, torchs)
        rows.append(row)
        if call is not None:
            calls[contestant.name] = call
    del reference
    times = interleave(calls, timer, effort)
    for row in rows:
        if row["name"] in times:
            row["time_s"] = times[row["name"]].to_json()
            # A backend named needs what it needs when dispatched to, so two children suffice.
            if with_memory and row["name"] in (BASELINE, OURS):
                row["peak_memory_bytes"] = memory.peak(case, mode, row["name"], device, extra)
    return rows, times


def _admit(
    contestant: Contestant,
    work: Workload,
    mode: str,
    timer: Timer,
    reference: dict[str, torch.Tensor],
    torchs: dict[str, float],
) -> tuple[dict, object]:
    """Run a contestant once and check it; fills `torchs` with the baseline's errors."""
    row = {
        "name": contestant.name,
        "label": contestant.label,
        "detail": None,
        "refused": None,
        "error": None,
        "time_s": None,
        "first_call_s": None,
        "peak_memory_bytes": None,
    }
    case = work.case
    try:
        prepared = contestant.prepare(work, mode)
        with dispatch.recording() as calls:
            seconds, returned = timer.once(prepared.call)
        row["detail"] = _ran(calls)
        length = check.checked_length(case)
        if length < case.length:
            short = contestant.prepare(Workload(case, work.device, length=length), mode)
            returned = short.call()
        found = check.errors(_named(prepared, returned), reference)
    # A refusal of seqkernels and a failure inside a peer both arrive as exceptions of any type, and
    # all are published with their text.
    except Exception as error:
        row["refused"] = _reason(error)
        return row, None
    row["first_call_s"] = seconds
    row["error"] = {name: _finite(value) for name, value in found.items()}
    if contestant.name == BASELINE:
        torchs.update(found)
        row["refused"] = check.oracle_verdict(found, torch_dtype(case.dtype))
    else:
        row["refused"] = check.verdict(found, torchs, torch_dtype(case.dtype))
    gc.collect()
    return row, None if row["refused"] else prepared.call


def _ran(calls: list) -> str | None:
    """Names of the backends of recorded calls; None if seqkernels was not called."""
    names = (dispatch.choose(call, name).name for call, name in calls)
    return ", ".join(dict.fromkeys(names)) or None


def _named(prepared: Prepared, returned) -> dict[str, torch.Tensor]:
    if prepared.named is not None:
        return prepared.named(returned)
    return named_results(returned, prepared.parameters)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, Refused) and text:
        return text[0]
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:300]


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return value if value < float("inf") else "not finite"
