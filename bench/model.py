"""What a person's own model would gain on this machine."""

import torch

from .cases import MODES, Case
from .contestants import BASELINE
from .runner import measure
from .timing import Effort, precision, timer_for
from .workload import Workload


def table(case: Case, device: torch.device, effort: Effort) -> str:
    """Measure one case against torch.nn and lay the result out as text.

    Args:
        case: the model and its input.
        device: where.
        effort: how long to measure.

    Returns:
        A line per contestant and mode, then the backend of every call and why.
    """
    lines = [f"{case.id} on {device.type}"]
    head = "".join(f"{name:>10}" for name in ("ms", "p20", "p80", "speed-up", "peak MB"))
    lines.append(f"{'mode':<10} {'contestant':<22}{head}")
    for mode in MODES:
        with precision(case.dtype, device):
            rows, _ = measure(case, mode, device, timer_for(device), effort)
        base = next(row["time_s"] for row in rows if row["name"] == BASELINE)
        for row in rows:
            start = f"{mode:<10} {row['name']:<22}"
            if row["refused"]:
                lines.append(f"{start} {row['refused']}")
                continue
            times = row["time_s"]
            gain = f"{base['median'] / times['median']:.2f}x" if base else ""
            peak = row["peak_memory_bytes"]
            values = [f"{times[name] * 1e3:.3f}" for name in ("median", "p20", "p80")]
            values += [gain, "?" if peak is None else f"{peak / 2**20:.1f}"]
            lines.append(start + "".join(f"{value:>10}" for value in values))
    return "\n".join([*lines, "", explanation(case, device)])


def explanation(case: Case, device: torch.device) -> str:
    """The backend of every call of a training step, and why those tried earlier do not run it."""
    import seqkernels
    from seqkernels import dispatch

    work = Workload(case, device)
    with dispatch.recording() as calls:
        work.call(work.model(seqkernels), "training")()
    lines = [
        f"T={c.steps} N={c.batch} I={c.input_size} H={c.hidden_size}"
        f"{' reversed' if c.reverse else ''}: {' '.join(dispatch.explain_call(c, name))}"
        for c, name in calls
    ]
    return "\n".join(dict.fromkeys(lines))
