"""Every Triton kernel in the interpreter, against the reference recurrence: one suite a process.

echo '["SUITE"]' | python tests/triton/interpreted.py
"""

import random
import time
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import interpreter  # isort: skip  (sets TRITON_INTERPRET)
import forked
import function_grid
import parity
import registered
import sanitized
import torch
import triton
import triton.language as tl
import triton_cells
import waiting
from tolerance import assert_parity

from seqkernels import reference
from seqkernels.cells import CELLS
from seqkernels.triton import (
    cells,
    exchange,
    launch,
    persistent,
    pointwise,
    products,
    sliced,
    states,
    stepwise,
    tiles,
)
from seqkernels.triton.estimate import device_of
from seqkernels.triton.plan import STEPWISE, Plan, candidates

SLICED = Plan("sliced", 16, 32, 32)
SPLIT = Plan("persistent", 16, 64, 16, split=2)
RESIDENT = replace(SPLIT, resident=True)
SHARED = Plan("persistent", 16, 64, 32)
# The modules of the sequence kernels and of what they call.
KERNELS = (sliced, persistent, stepwise, exchange, products, tiles, states, cells, triton_cells)
PLANS = (SLICED, SPLIT, RESIDENT, SHARED, STEPWISE)


@dataclass(frozen=True)
class Case:
    """Sizes and options of a call; `layout` is "padded", "lengths", "packed" or "reset"."""

    steps: int = 3
    batch: int = 5
    hidden_size: int = 37
    layout: str = "padded"
    reverse: bool = False
    bias: bool = True
    partial: bool = False

    def drawn(self) -> parity.Case:
        """The case with random rows: among them one that is empty and one that is full."""
        lengths = batch_sizes = None
        if self.layout == "lengths":
            drawn = torch.randint(0, self.steps + 1, (self.batch,)).tolist()
            lengths = (0, *drawn[1:-1], self.steps)
        elif self.layout == "packed":
            drawn = torch.randint(1, self.batch + 1, (self.steps - 1,)).tolist()
            batch_sizes = (self.batch, *sorted(drawn, reverse=True))
        return parity.Case(
            self.steps, self.batch, self.hidden_size, lengths, batch_sizes, self.layout == "reset",
            self.reverse, self.bias,
        )  # fmt: skip


CASES = (
    Case(),
    Case(reverse=True, bias=False),
    Case(1, 1, 20),
    Case(2, 16, 1),
    Case(batch=17, layout="lengths"),
    Case(layout="lengths", reverse=True, hidden_size=16),
    Case(layout="packed", reverse=True),
    Case(layout="packed", hidden_size=48),
    Case(layout="reset", reverse=True),
    Case(layout="reset", partial=True),
)


def once(cell, *args, plan):
    """The forward; values for a backward are kept only if that is asked for."""
    results = launch.forward(cell, *args, plan=plan)
    assert args[-1] or results[4].numel() == 0
    return results


def twice(cell, *args, plan):
    """The backward, run twice: it must be bit-equal."""
    found, again = (launch.backward(cell, *args, plan=plan) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "a second backward"
    return found


def last_grad(results, every=parity.grads_like):
    """The gradient of the last h alone."""
    return [grad if i == 1 else None for i, grad in enumerate(every(results))]


def check(cell, case, dtype, plan, repeat=False):
    """Compare every result and every gradient of a call with the reference.

    `repeat`: also that a second backward is bit-equal.
    """
    backward = twice if repeat else launch.backward
    ops = [sanitized.named(f, cell, "sequence", plan=plan) for f in (once, backward)]
    grads = last_grad if case.partial else parity.grads_like
    with mock.patch.object(parity, "grads_like", grads):
        parity.check_sequence(cell, case.drawn(), dtype, *ops)


def suite_float32():
    """Every cell, schedule and option in float32."""
    for j, cell in enumerate(CELLS):
        for i, case in enumerate(CASES):
            # One schedule with each option: over the cells, every schedule meets every option.
            plan = PLANS[(i + j) % len(PLANS)]
            if plan is STEPWISE:
                # Its programs take single rows.
                case = replace(case, batch=min(case.batch, 5))
            check(cell, case, torch.float32, plan, repeat=i % 3 == j % 3)


def suite_half():
    """Both 16-bit dtypes, whose products and stores the kernels do differently."""
    for dtype in (torch.float16, torch.bfloat16):
        for i, cell in enumerate(CELLS):
            for j, case in enumerate((CASES[5], CASES[7])):
                check(cell, case, dtype, PLANS[(i + j) % len(PLANS)])


def suite_cells():
    """The fused cell kernels, in every dtype, with and without saved values and gradients."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for cell, spec in CELLS.items():
            if not spec.pointwise:
                continue
            check_cell(cell, dtype, 2, 300)


def check_cell(cell, dtype, rows, hidden_size):
    """Compare one step of a pointwise cell and its gradients with the reference."""
    spec = CELLS[cell]

    def random(count):
        return torch.randn(rows, count * hidden_size).to(dtype)

    h, c = random(1), random(spec.states - 1).abs() if spec.states > 1 else None
    inputs = [random(spec.gates), random(spec.gates), h, *([] if c is None else [c])]
    grads = [random(1), *([] if c is None else [random(spec.states - 1)])]

    def reference_in(kind):
        x = [t.to(kind, copy=True).requires_grad_() for t in inputs]
        state = reference.cell(cell, *x[:2], reference.split_state(spec, *(*x[2:], None)[:2]))
        state = [state[0], *([] if c is None else [reference.others(state)])]
        found = torch.autograd.grad(
            state, x, [g.to(kind) for g in grads], allow_unused=True, materialize_grads=True
        )
        return [*(s.detach() for s in state), *found]

    new_h, new_c, saved = pointwise.forward(cell, *inputs[:2], h, c, True)
    given = (h, c, new_h, new_c, saved)
    found = pointwise.backward(cell, *(*grads, None)[:2], *given)
    grad_x, grad_gates_h, grad_h, grad_c = found
    ours = [new_h, new_c, grad_x, grad_gates_h if spec.separate_columns else grad_x, grad_h, grad_c]
    ours = [x for x in ours if x.numel()]
    for i, (a, b, e) in enumerate(
        zip(ours, reference_in(dtype), reference_in(torch.float64), strict=True)
    ):
        assert_parity(a, b, e, f"{cell} cell, result {i}")
    lean = pointwise.forward(cell, *inputs[:2], h, c, False)
    assert torch.equal(lean[0], new_h) and lean[2].numel() == 0
    if dtype != torch.float32:
        return
    # No gradient of one state is a gradient of zeros.
    none = pointwise.backward(cell, grads[0], None, *given)
    zeros = pointwise.backward(cell, grads[0], None if c is None else torch.zeros_like(c), *given)
    assert all(torch.equal(a, b) for a, b in zip(none, zeros, strict=True))


def more_cells(plans, dtypes, cases):
    """Cells that the package does not have, on every plan: each time the next dtype and case."""
    with triton_cells.added():
        for i, plan in enumerate(plans):
            for j, cell in enumerate(triton_cells.PAIRS):
                dtype, case = dtypes[(i + j) % len(dtypes)], cases[(3 * i + j) % len(cases)]
                check(cell, replace(case, batch=min(case.batch, 5)), dtype, plan, repeat=i == j)


def suite_more():
    """Every schedule with every cell from outside, every layout and dtype with one of them."""
    cases = (*CASES[5:7], CASES[8], CASES[0])
    more_cells((SLICED, SPLIT, STEPWISE), (torch.float32, torch.bfloat16, torch.float16), cases)


def suite_more_whole():
    """Every plan, every case with one cell; groups of several programs; the cell op of one."""
    with interpreter.guard_pages(True):
        more_cells(PLANS, (torch.float32,), CASES)
    with triton_cells.added():
        for i, cell in enumerate(triton_cells.PAIRS):
            exchanged(cell, i % 3)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            check_cell("slstm", dtype, 2, 300)


def gradients(cell, **options):
    """`gradcheck` on every schedule: the gradients of all inputs, parameters of the cell included.

    No schedule has float64: the interpreter computes in it what kernels compute in float32.
    """
    plans = [replace(plan, block_h=8) for plan in (SLICED, SPLIT)]
    with triton_cells.added(), interpreter.in_float64(*KERNELS):
        for plan in (*plans, STEPWISE):
            ops = [partial(f, cell, plan=plan) for f in (launch.forward, launch.backward)]
            parity.check_gradients(cell, parity.Case(2, 2, 2), *ops, **options)


suite_gradients_leaky_rnn = partial(gradients, "leaky_rnn")
# In fast mode, which compares one random direction of every input and result: the whole Jacobian
# would take 20 to 50 s a schedule.
FAST = {"fast_mode": True, "check_undefined_grad": False}
suite_gradients_peephole_lstm = partial(gradients, "peephole_lstm", **FAST)
suite_gradients_scaled_gru = partial(gradients, "scaled_gru", **FAST)
suite_gradients_slstm = partial(gradients, "slstm", **FAST)


def suite_guard():
    """No kernel touches memory beyond its tensors, at either end."""
    for after in (True, False):
        with interpreter.guard_pages(after):
            for i, cell in enumerate(CELLS):
                for j, case in enumerate((Case(2, 3, 7), *CASES[4 + after : 8 : 2])):
                    case = replace(case, steps=2, batch=3)
                    check(cell, case, torch.float16, PLANS[(i + j + after) % len(PLANS)])
            for cell, spec in CELLS.items():
                if spec.pointwise:
                    check_cell(cell, torch.float16, 2, 21)


@triton.jit
def _beyond(x, N):
    tl.store(x + N, tl.load(x))


def suite_beyond():
    """A kernel that writes one value too far: must end the process."""
    with interpreter.guard_pages(True):
        _beyond[(1,)](torch.zeros(8), 8)


def nap():
    """Hold a program up, differently every time and in every process."""
    time.sleep(random.SystemRandom().uniform(0, 0.004))


def rest():
    """Hold a program up for longer than the others need."""
    time.sleep(0.2)


@triton.jit
def _late_wait(counters, group, target, ALONE: tl.constexpr, KERNEL: tl.constexpr):
    nap()
    exchange.wait_for(counters, group, target, ALONE, KERNEL)
    nap()


@triton.jit
def _late_announce(counters, group, ALONE: tl.constexpr):
    nap()
    exchange.announce(counters, group, ALONE)


@triton.jit
def _no_wait(counters, group, target, ALONE: tl.constexpr, KERNEL: tl.constexpr):
    pass


def exchanged(cell, first=0):
    """Groups of several programs, all at once: what one writes, the others wait for."""
    small = {"block_h": 16, "block_n": 16, "block_k": 16}
    plans = [replace(plan, **small) for plan in (SPLIT, RESIDENT, SHARED)]
    with interpreter.programs_at_once(first=first):
        check(cell, Case(3, 3, 37), torch.float32, plans[first])
        if cell in ("lstm", "gru", "gru_reset_before"):
            case = Case(3, 18, 20, layout="lengths", reverse=cell == "lstm")
            check(cell, case, torch.float32, plans[(first + 1) % 3])


def suite_exchange():
    """Every cell, its programs in different orders."""
    for i, cell in enumerate(CELLS):
        exchanged(cell, i % 3)


def suite_late():
    """The same with programs that are held up around every announcement and wait.

    gru_reset_before writes r * h to one place again and again: a slow reader meets a fast writer.
    """
    persistent.wait_for, persistent.announce = _late_wait, _late_announce
    for cell in ("lstm", "gru_reset_before", "gru_reset_before"):
        exchanged(cell, random.randrange(3))


def suite_unsynchronised():
    """Without the wait: must not agree with the reference."""
    persistent.wait_for = _no_wait
    exchanged("lstm")


def suite_unsynchronised_reset():
    """The same of the kernels with two exchanges a step."""
    persistent.wait_for = _no_wait
    exchanged("gru_reset_before")


@triton.jit
def _second_wait_alone(counters, group, target, ALONE: tl.constexpr, KERNEL: tl.constexpr):
    members = 3
    if target % (2 * members) != 0:
        exchange.wait_for(counters, group, target, ALONE, KERNEL)
        if tl.program_id(0) == 1:
            rest()


def suite_half_synchronised():
    """With the second wait of a step alone, which program 1 leaves late: it must not agree."""
    persistent.wait_for = _second_wait_alone
    exchanged("gru_reset_before")


def suite_bounded():
    """With a limit that no wait reaches, as the environment sets one: the numbers are right."""
    assert exchange.SPIN_LIMIT.value > 0
    for cell in ("lstm", "gru_reset_before"):
        exchanged(cell)


def suite_chosen():
    """The plans that shapes really get."""
    for cell in ("lstm", "gru_reset_before", "rnn_tanh"):
        spec = CELLS[cell]
        for direction in ("forward", "backward"):
            plan = candidates(cell, direction, 4, "ieee", 5, 37, device_of(torch.device("cpu")))[0]
            assert plan.refusal(device_of(torch.device("cpu")), spec, 5, 37, direction, 4) is None
        # The chosen plan may have several programs to a group: they must run at once.
        with interpreter.programs_at_once():
            check(cell, replace(CASES[4], steps=2), torch.float32, None)
            check(cell, replace(CASES[7], steps=2), torch.bfloat16, None)


def suite_small():
    """What compute-sanitizer runs on a GPU; and a wrong result is told."""
    names = [name for name, _ in sanitized.checks(torch.device("cpu"))]
    for cell in sanitized.SEQUENCES:
        exchanging = ("persistent", "persistent split", "persistent split resident")
        assert names[:5] == [f"{cell} {kind}" for kind in (*exchanging, "sliced", "stepwise")]
        del names[:5]
    assert sanitized.main("cpu", interpreter.programs_at_once) == 0
    sanitized.SEQUENCES, kept = (), pointwise.forward
    pointwise.forward = lambda *args: (kept(*args)[0] + 1, *kept(*args)[1:])
    assert sanitized.main("cpu", interpreter.programs_at_once) == 4


suite_functions = function_grid.functions
suite_stuck = waiting.stuck
suite_opcheck = registered.opcheck
suite_compiled = registered.compiled


def main(suite):
    torch.manual_seed(0)
    began = time.perf_counter()
    globals()[f"suite_{suite}"]()
    print(f"{suite}: passed in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    forked.serve(main)
