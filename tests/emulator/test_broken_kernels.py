"""The persistent kernels, deliberately broken: every planted bug is found.

The headers of csrc/cuda are copied, one text is replaced, and LSTM in float16 is compiled from the
copy and put to the tests that all kernels have to pass: parity under the tolerance rule with memory
full of NaN, on each schedule, then the race checker.
"""

import functools
from dataclasses import dataclass

import broken
import pytest
import torch
from emulator import SCHEDULES, EmulatorError
from parity import Case, check_sequence
from small_kernels import sequence_pair

pytestmark = [pytest.mark.needs("headers", "cuda_build"), pytest.mark.exhaustive]

SOURCE = "tests/emulator/kernels/persistent_lstm.cu"
# Blocks of 8 units, the last not full; a slice of 8 rows, and one of three.
MIXED = Case(3, 11, 37, lengths=(2, 3, 1, 3, 2, 0, 3, 3, 2, 1, 2), reverse=True)
CLUSTER = {"processors": 132, "max_cluster": 8, "max_units": 16}
L2 = {**CLUSTER, "max_cluster": 1}
# For the race checker, which is slow.
SMALL = Case(2, 3, 24)
# One block that has more warps than tiles.
IDLE_WARPS = Case(2, 40, 8), {"processors": 1, "max_cluster": 1, "max_units": 256}


@dataclass(frozen=True)
class Bug:
    """A replacement of one text in one header, and the check that finds it."""

    file: str
    old: str
    new: str
    finds: str  # part of what the check says
    schedules: tuple[str, ...] = ("round robin",)  # each finds it
    case: Case = MIXED
    device: tuple = tuple(CLUSTER.items())
    sanitizer: str | None = None


def through_l2(*fields, **options) -> Bug:
    return Bug(*fields, device=tuple(L2.items()), **options)


BUGS = {
    "cluster: the values of the others are not waited for": Bug(
        "exchange.h",
        "sk::mbarrier_wait_cluster(barrier, round / 2 % 2, round);",
        "",
        "output",
    ),
    "cluster: the wait is for the other parity": Bug(
        "exchange.h",
        "sk::mbarrier_wait_cluster(barrier, round / 2 % 2, round);",
        "sk::mbarrier_wait_cluster(barrier, (round / 2 + 1) % 2, round);",
        "output",
    ),
    "cluster: the barrier counts the bytes of one block too few": Bug(
        "exchange.h",
        "mbarrier_arrive_expect_tx(barrier, (plan_->blocks - 1) * bytes)",
        "mbarrier_arrive_expect_tx(barrier, (plan_->blocks - 2) * bytes)",
        "the receiving block has exited",
        schedules=("shuffled",),
    ),
    "cluster: stores begin before the barriers of all are ready": Bug(
        "exchange.h",
        "sk::mbarrier_init_fence();\n      }\n      sk::cluster_sync();",
        "sk::mbarrier_init_fence();\n      }\n      __syncthreads();",
        "the other block may not have started",
    ),
    "L2: the flag is not waited for": through_l2(
        "exchange.h",
        "while (uint32_t(word[i].high >> 32) != flag(round)) {",
        "while (false) {",
        "output: error",
    ),
    "L2: the flag is that of the round before": through_l2(
        "exchange.h",
        "return uint32_t(round) + 1;",
        "return uint32_t(round);",
        "output: error",
    ),
    "L2: one buffer instead of two": through_l2(
        "exchange.h",
        "words_ + ((round % 2 * groups + b.group)",
        "words_ + ((round * 0 * groups + b.group)",
        "livelock",
        schedules=("depth first",),
    ),
    "the double buffer's halves are swapped in the publisher": Bug(
        "exchange.h",
        "const char* values = outgoing(b, round, bytes);",
        "const char* values = outgoing(b, round + 1, bytes);",
        "output: error",
    ),
    "values are published before all are staged": Bug(
        "persistent.h",
        "        __syncthreads();\n        exchanger.publish(b, round, bytes);",
        "        exchanger.publish(b, round, bytes);",
        "output: error",
    ),
    "the product begins before all have collected": through_l2(
        "persistent.h",
        "exchanger.collect(b, round, bytes);\n        __syncthreads();",
        "exchanger.collect(b, round, bytes);",
        "output: error",
    ),
    "the same, seen by the race checker": through_l2(
        "persistent.h",
        "exchanger.collect(b, round, bytes);\n        __syncthreads();",
        "exchanger.collect(b, round, bytes);",
        "data race",
        case=SMALL,
        sanitizer="thread",
    ),
    "partial sums are read before all are there": Bug(
        "persistent.h",
        "if (!first) multiply(phase);\n      __syncthreads();",
        "if (!first) multiply(phase);",
        "output",
    ),
    "the last part of the summed dimension is dropped": through_l2(
        "persistent.h",
        "split < f.k_splits; ++split",
        "split + 1 < f.k_splits; ++split",
        "output: error",
    ),
    "memory beyond the sizes is not cleared": Bug(
        "persistent.h",
        "*reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);",
        "",
        "output",
    ),
    "rows beyond the batch are not masked": Bug(
        "product.h",
        "b.rows = p.batch - b.first_row < p.rows ? p.batch - b.first_row : p.rows;",
        "b.rows = p.rows;",
        "memory fault",
    ),
    "weights beyond the hidden size are not masked": Bug(
        "product.h",
        "if (valid && unit + e < hidden) {",
        "if (valid) {",
        "memory fault",
    ),
    "warps without a tile write sums": Bug(
        "product.h",
        "if (!active_) return;",
        "",
        "of shared memory",
        case=IDLE_WARPS[0],
        device=tuple(IDLE_WARPS[1].items()),
    ),
    "a row lives one step too long": Bug(
        "forward.h",
        "alive[i] = e.valid && t < e.length;",
        "alive[i] = e.valid && t <= e.length;",
        "output past a row's end",
    ),
    "a slice stops one step early": Bug(
        "persistent.h",
        "s < steps.count; ++s",
        "s + 1 < steps.count; ++s",
        "output",
    ),
    "the first state is loaded in another order of the rows": Bug(
        "forward.h",
        "int64_t(b.part) * p.batch + batch_row(a, b, row);",
        "int64_t(b.part) * p.batch + b.first_row + row;",
        "output: error",
    ),
    "the bias is added twice": Bug(
        "forward.h",
        "v.gates_h[gate] = bias[gate * p.units + e.unit] +",
        "v.gates_h[gate] = 2.0f * bias[gate * p.units + e.unit] +",
        "output: error",
    ),
    "the gradient of c is not carried": Bug(
        "backward.h",
        "v.grad_new_state[j] += v.grad_state[j];",
        "v.grad_new_state[j] += j == 0 ? v.grad_state[j] : 0.0f;",
        "grad_gates_x: error",
    ),
    "the gradient of h is not carried over ended steps": Bug(
        "backward.h",
        "if (kEnds) dropped[i] = reset[i];",
        "if (kEnds) dropped[i] = reset[i];\n    if (!alive[i]) v.grad_state[0] = 0.0f;",
        "grad_h_0: error",
    ),
    "the state before the last step is that of the step after it": Bug(
        "backward.h",
        "before >= 0 && before < e.length;",
        "before >= 0 && before <= e.length;",
        "memory fault",
    ),
}


@functools.cache
def libraries():
    return broken.libraries(SOURCE, BUGS.values())


def complaint(library, case, device, schedule) -> str | None:
    """What the checks say against a build."""
    try:
        check_sequence("lstm", case, torch.float16, *sequence_pair(library, dict(device), schedule))
    except (EmulatorError, AssertionError) as found:
        return str(found)
    return None


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("device", [CLUSTER, L2], ids=["cluster", "L2"])
def test_unbroken(device, schedule):
    assert complaint(libraries()[None, None], MIXED, device, schedule) is None


def test_unbroken_without_exchange():
    assert complaint(libraries()[None, None], *IDLE_WARPS, SCHEDULES[0]) is None


@pytest.mark.parametrize("device", [CLUSTER, L2], ids=["cluster", "L2"])
def test_unbroken_under_the_race_checker(device):
    assert complaint(libraries()[None, "thread"], SMALL, device, SCHEDULES[0]) is None


@pytest.mark.parametrize("name", BUGS)
def test_found(name):
    bug = BUGS[name]
    library = libraries()[bug, bug.sanitizer]
    said = [complaint(library, bug.case, bug.device, schedule) for schedule in bug.schedules]
    assert all(text is not None and bug.finds in text for text in said), said
