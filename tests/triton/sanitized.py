"""Every kind of Triton kernel once, at sizes small enough for compute-sanitizer.

Run as `compute-sanitizer --tool T python tests/triton/sanitized.py`. Exits with 1 where a result is
beyond the tolerance, or where there is no GPU.
"""

import contextlib
import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import torch  # noqa: E402
from parity import Case, check_cell, check_sequence  # noqa: E402

from seqkernels.cells import CELLS  # noqa: E402
from seqkernels.triton.estimate import device_of  # noqa: E402
from seqkernels.triton.plan import Plan, candidates  # noqa: E402

# Groups of several programs, the last of which has units and rows to spare; one row is empty.
CASE = Case(3, 3, 40, lengths=(3, 0, 2))
DTYPE = torch.float16
# With two states, with a gradient of its own for the hidden side, and with two stages.
SEQUENCES = ("lstm", "gru", "gru_reset_before")


def kinds(cell: str, direction: str, device: torch.device) -> dict[str, Plan]:
    """The cheapest plan of every kind of schedule, those that exchange first."""
    found = {}
    shape = (cell, direction, DTYPE.itemsize, "ieee", 16, CASE.hidden_size)
    for plan in candidates(*shape, device_of(device)):
        words = (plan.schedule, "split" * (plan.split > 1), "resident" * plan.resident)
        # A group of one program exchanges nothing.
        if plan.schedule != "persistent" or plan.members(CASE.hidden_size) > 1:
            found.setdefault(" ".join(filter(None, words)), plan)
    return dict(sorted(found.items()))


def checks(device: torch.device):
    """(name, function that raises AssertionError) for every kernel."""
    from seqkernels.triton import launch, pointwise

    for cell in SEQUENCES:
        plans = [kinds(cell, direction, device) for direction in ("forward", "backward")]
        for kind in plans[0]:
            ops = [
                named(function, cell, "sequence", plan=found[kind])
                for function, found in zip((launch.forward, launch.backward), plans, strict=True)
            ]
            yield f"{cell} {kind}", partial(check_sequence, cell, CASE, DTYPE, *ops, device)
    for cell, spec in CELLS.items():
        if spec.pointwise:
            ops = [named(f, cell, "cell") for f in (pointwise.forward, pointwise.backward)]
            yield f"{cell} cell", partial(check_cell, cell, 3, 40, DTYPE, *ops, device)


def named(function, cell: str, what: str, **options):
    """`function` of a cell, under the name of its op."""
    bound = partial(function, cell, **options)
    bound.__qualname__ = f"{cell}_{what}_triton"
    return bound


def main(device: str = "cuda", at_once=contextlib.nullcontext) -> int:
    """Run all checks; the number of those that fail.

    Args:
        device: where.
        at_once: makes the context in which programs that wait for each other run.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU")
        return 1
    failed = 0
    for name, check in checks(torch.device(device)):
        result = "ok"
        try:
            with at_once() if "persistent" in name else contextlib.nullcontext():
                check()
        except AssertionError as error:
            failed, result = failed + 1, f"WRONG: {error}"
        # A run that is stopped shows how far it came.
        print(name, result, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
