"""The waits and announcements of stacked layers, deliberately broken: every planted bug is found.

As test_broken_kernels.py does it for one layer: three layers of LSTM in float16 are compiled from a
copy of the headers with one text replaced, and put to the parity test and the race checker.
"""

import functools
from dataclasses import dataclass

import broken
import pytest
import torch
from emulator import SCHEDULES, EmulatorError
from joined import check_layers
from parity import Case
from small_kernels import layers_pair

from seqkernels import _extension

pytestmark = [pytest.mark.needs("headers", "cuda_build"), pytest.mark.exhaustive]

SOURCE = "tests/emulator/kernels/stacked_lstm.cu"
MIXED = Case(4, 11, 37, lengths=(2, 3, 1, 4, 2, 0, 3, 4, 2, 1, 2), bias=False)
# For the race checker, which is slow and holds no more than 8128 threads.
SMALL = Case(2, 3, 24, bias=False)
CLUSTER = {"processors": 132, "shared_per_block": 227 << 10, "max_cluster": 8, "max_units": 16}
L2 = {**CLUSTER, "max_cluster": 1}
# Blocks that take what the layer above feeds them in two pieces, on a device with little memory.
PIECES = {**L2, "processors": 9, "shared_per_block": 10 << 10}
FEW = Case(2, 3, 20, bias=False)
KINDS = {"cluster": (MIXED, CLUSTER), "L2": (MIXED, L2), "pieces": (FEW, PIECES)}
KINDS["small"] = SMALL, CLUSTER


@dataclass(frozen=True)
class Bug:
    """A replacement of one text in one header, and the check that finds it."""

    file: str
    old: str
    new: str
    finds: str  # part of what the check says
    schedule: str = "round robin"
    kind: str = "cluster"
    sanitizer: str | None = None


WAIT = "sk::wait_at_least(flags + peer, uint32_t(s) + 1, peer);"
BUGS = {
    "the layer above is not waited for": Bug(
        "stack.h", WAIT, f"if (!kBackward) {WAIT}", "grad_", "depth first"
    ),
    "the layer below is not waited for": Bug(
        "stack.h", WAIT, f"if (kBackward) {WAIT}", "results change", "depth first"
    ),
    "the step before is waited for": Bug(
        "stack.h", WAIT, WAIT.replace("s) + 1", "s) + (kBackward ? 0 : 1)"), "grad_", "depth first"
    ),
    "a step is announced too early": Bug(
        "stack.h",
        "b.own, uint32_t(s) + 1);",
        "b.own, uint32_t(s) + (kBackward ? 2 : 1));",
        "grad_",
        "shuffled",
    ),
    "a step is announced before it is written": Bug(
        "persistent.h",
        "policy.store(a, steps, phase, s);",
        "if (Policy::kBackward && feeds) feed.announce(a, b, s);\n"
        "      policy.store(a, steps, phase, s);",
        "data race",
        kind="small",
        sanitizer="thread",
    ),
    "steps are not announced": Bug(
        "stack.h", "if (b.thread == 0) sk::store_release(", "if (false) sk::store_release(", "lock"
    ),
    "the own layer is waited for": Bug(
        "stack.h", "kBackward ? p.slices :", "kBackward ? 0 :", "lock"
    ),
    "what is fed is read before all peers were waited for": Bug(
        "stack.h",
        "__syncthreads();\n    char* input",
        "if (!kBackward) __syncthreads();\n    char* input",
        "data race",
        kind="small",
        sanitizer="thread",
    ),
    "the product begins before all is taken": Bug(
        "stack.h",
        "__syncthreads();\n      product_.run(",
        "if (!kBackward) __syncthreads();\n      product_.run(",
        "data race",
        kind="small",
        sanitizer="thread",
    ),
    "a piece is replaced before it is read": Bug(
        "stack.h",
        "product_.run(p, b, input, piece);\n      __syncthreads();",
        "product_.run(p, b, input, piece);\n      if (piece > 0 || !kBackward) __syncthreads();",
        "data race",
        kind="pieces",
        sanitizer="thread",
    ),
    "pieces are not added up": Bug(
        "stack.h",
        "product_.run(p, b, input, piece);",
        "product_.run(p, b, input, 0);",
        "grad_",
        kind="pieces",
    ),
    "gates beyond the hidden size are read": Bug(
        "stack.h", "unit >= p.hidden) continue;", "false) continue;", "fault", kind="small"
    ),
    "the weights are those of the layer itself": Bug(
        "stack.h", "kBackward ? b.part + 1 : b.part]", "kBackward ? 2 : b.part]", "grad_"
    ),
    "every layer is given the gradients of the last": Bug(
        "backward.h",
        "const bool fed = kStacked && steps.part + 1 < a.plan.parts;",
        "const bool fed = false;",
        "grad_",
    ),
    "every layer is given the gradients of the last c sequence": Bug(
        "backward.h",
        "v.grad_new_state[j] = fed ? 0.0f :",
        "v.grad_new_state[j] = false ? 0.0f :",
        "grad_",
    ),
}


@functools.cache
def libraries():
    return broken.libraries(SOURCE, BUGS.values())


def complaint(library, kind, schedule) -> str | None:
    """What the checks say against a build."""
    case, device = KINDS[kind]
    forward, backward = layers_pair(library, device, schedule)
    try:
        check_layers("lstm", case, torch.float16, forward, run_back=backward)
    except (EmulatorError, AssertionError) as found:
        return str(found)
    return None


def test_the_pieces_are_two():
    case, device = KINDS["pieces"]
    sizes = case.batch, case.hidden_size
    plan = _extension.C.plan("lstm", "float16", True, *sizes, layers=3, **device)
    assert plan["phases"][-1]["pieces"] == 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_unbroken(kind, schedule):
    assert complaint(libraries()[None, None], kind, schedule) is None


@pytest.mark.parametrize("kind", ["small", "pieces"])
def test_unbroken_under_the_race_checker(kind):
    assert complaint(libraries()[None, "thread"], kind, SCHEDULES[0]) is None


@pytest.mark.parametrize("name", BUGS)
def test_found(name):
    bug = BUGS[name]
    said = complaint(libraries()[bug, bug.sanitizer], bug.kind, bug.schedule)
    assert said is not None, "not found"
    assert bug.finds in said, said
