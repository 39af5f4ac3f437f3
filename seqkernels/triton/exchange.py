"""The counter of a group: how its programs wait for each other.

A group is the programs that share one batch slice. Its counter only grows: a program adds one with
release after it has stored its panel of a result, and polls with acquire before it
loads what the others stored.

Environment, read at import:
    SEQKERNELS_SPIN_LIMIT: polls after which a wait fails and ends the kernel with an error; 0,
        the default, for none. For finding a hang: the error costs the process its CUDA context.
"""

import os

import triton
import triton.language as tl


def _spin_limit() -> int:
    text = os.environ.get("SEQKERNELS_SPIN_LIMIT") or "0"
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise ValueError(
            f"SEQKERNELS_SPIN_LIMIT must be a number of polls below 2 ** 31, 0 for none, not {text}"
        )
    return int(text)


SPIN_LIMIT = tl.constexpr(_spin_limit())
# Launch options of a kernel that waits. Triton compiles assertions only under `debug`, which by
# default also adds one for every sum of integers.
WAIT_OPTIONS = {"debug": True, "sanitize_overflow": False} if SPIN_LIMIT.value else {}


@triton.jit
def wait_for(counters, group, target, ALONE: tl.constexpr, KERNEL: tl.constexpr):
    """Return when the group's counter has reached `target`: what was written before is visible.

    KERNEL is the name by which a wait that fails is reported.
    """
    if not ALONE:
        arrived = tl.atomic_add(counters + group, 0, sem="acquire", scope="gpu")
        if SPIN_LIMIT == 0:
            while arrived < target:
                arrived = tl.atomic_add(counters + group, 0, sem="acquire", scope="gpu")
        else:
            polls = 0
            while (arrived < target) & (polls < SPIN_LIMIT):
                arrived = tl.atomic_add(counters + group, 0, sem="acquire", scope="gpu")
                polls += 1
            if arrived < target:
                # An assertion's text has no numbers. Printed first: the assertion ends the kernel.
                tl.device_print(KERNEL + ": group, target, arrived", group, target, arrived)
            assert arrived >= target, KERNEL + ": gave up waiting for its group"


@triton.jit
def announce(counters, group, ALONE: tl.constexpr):
    """Add one to the group's counter, after everything this program has stored."""
    tl.debug_barrier()
    if not ALONE:
        tl.atomic_add(counters + group, 1, sem="release", scope="gpu")
