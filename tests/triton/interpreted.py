"""Every Triton kernel in the interpreter, against the reference recurrence: one suite a process.

echo '["SUITE"]' | python tests/triton/interpreted.py
"""

import random
import time
from dataclasses import dataclass, replace

import interpreter  # isort: skip  (sets TRITON_INTERPRET)
import forked
import function_grid
import registered
import sanitized
import torch
import triton
import triton.language as tl
import waiting
from tolerance import assert_parity

from seqkernels import reference
from seqkernels.cells import CELLS
from seqkernels.ops.sequence import reference_sequence
from seqkernels.ops.weights import bias_grads, weight_hh_grad
from seqkernels.triton import cooperative, cooperative_reset_before, exchange, launch, pointwise
from seqkernels.triton.estimate import device_of
from seqkernels.triton.plan import STEPWISE, Plan, candidates

SLICED = Plan("sliced", 16, 32, 32)
SPLIT = Plan("cooperative", 16, 64, 16, split=2)
RESIDENT = replace(SPLIT, resident=True)
SHARED = Plan("cooperative", 16, 64, 32)
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


def compute(cell, case, dtype, inputs, grads, lengths, batch_sizes, reset):
    """Results and gradients of the reference in `dtype`: (names, tensors)."""
    spec = CELLS[cell]
    x = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in inputs]
    output, state, c_sequence = reference_sequence(
        spec, x[0], x[1], x[2], x[3:], lengths, batch_sizes, reset, case.reverse
    )
    outputs = [output, *state] if c_sequence is None else [output, *state, c_sequence]
    pairs = [(o, g.to(dtype)) for o, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [t for t in x if t is not None]
    kept, kept_grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(kept, wanted, kept_grads)
    return [t.detach() for t in outputs], list(found)


def check(cell, case, dtype, plan, repeat=False):
    """Compare every result and every gradient of one call with the reference.

    `repeat`: also that a second backward is bit-equal, and that saving nothing changes nothing.
    """
    spec = CELLS[cell]
    steps, batch, hidden_size = case.steps, case.batch, case.hidden_size
    lengths = batch_sizes = reset = None
    lead = (steps, batch)
    if case.layout == "lengths":
        # Among them a row that is empty and one that is full.
        lengths = torch.randint(0, steps + 1, (batch,))
        lengths[0], lengths[-1] = 0, steps
    elif case.layout == "packed":
        batch_sizes = torch.randint(1, batch + 1, (steps,)).sort(descending=True).values
        batch_sizes[0] = batch
        lead = (int(batch_sizes.sum()),)
    elif case.layout == "reset":
        reset = torch.rand(steps, batch) < 0.4
    inputs = [
        torch.randn(*lead, spec.gates * hidden_size),
        torch.randn(spec.gates * hidden_size, hidden_size) / hidden_size**0.5,
        torch.randn(spec.gates * hidden_size) if case.bias else None,
        *(torch.randn(batch, hidden_size) for _ in range(spec.states)),
    ]
    inputs = [None if x is None else x.to(dtype) for x in inputs]
    grads = [torch.randn(*lead, hidden_size), *(torch.randn_like(h) for h in inputs[3:])]
    if spec.states == 2:
        grads.append(torch.randn(*lead, hidden_size))
    grads = [g.to(dtype) for g in grads]
    if case.partial:
        # The gradient of the last state alone.
        grads = [g if i == 1 else None for i, g in enumerate(grads)]

    gates_x, weight_hh, bias_hh, h_0 = inputs[:4]
    c_0 = inputs[4] if spec.states == 2 else None
    layout = (lengths, batch_sizes, reset, case.reverse)
    results = launch.forward(cell, gates_x, weight_hh, bias_hh, h_0, c_0, *layout, True, plan=plan)
    output, h_n, c_n, c_sequence, saved = results
    grad_output, grad_h_n, grad_c_n, grad_c_sequence = (*grads, None, None)[:4]
    backward = (grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, h_0, c_0)
    backward += (output, c_sequence, saved, *layout)
    found = launch.backward(cell, *backward, plan=plan)
    grad_x, grad_h, grad_h_0, grad_c_0 = found

    ours = [output, h_n] + ([c_n, c_sequence] if spec.states == 2 else [])
    ours_grads = [grad_x, weight_hh_grad(spec, grad_x, grad_h, saved, h_0, output, *layout)]
    if case.bias:
        ours_grads.append(bias_grads(spec, grad_x, grad_h)[1])
    ours_grads += [grad_h_0] + ([grad_c_0] if spec.states == 2 else [])
    extra = (inputs, grads, lengths, batch_sizes, reset)
    expected = compute(cell, case, torch.float64, *extra)
    theirs = compute(cell, case, dtype, *extra)
    names = ["output", "h_n", "c_n", "c_sequence"][: len(ours)]
    names_grads = ["gates_x", "weight_hh", *(["bias_hh"] if case.bias else []), "h_0", "c_0"]
    names += [f"grad of {name}" for name in names_grads][: len(ours_grads)]
    for name, a, b, c in zip(
        names, ours + ours_grads, sum(theirs, []), sum(expected, []), strict=True
    ):
        assert_parity(a, b, c, f"{cell} {plan} {case}: {name}")
    if not repeat:
        return
    again = launch.backward(cell, *backward, plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "a second backward"
    lean = launch.forward(cell, gates_x, weight_hh, bias_hh, h_0, c_0, *layout, False, plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(lean[:3], results[:3], strict=True))
    assert lean[3].numel() == lean[4].numel() == 0


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
            check_cell(cell, spec, dtype, 2, 300)


def check_cell(cell, spec, dtype, rows, hidden_size):
    columns = spec.gates * hidden_size
    inputs = [torch.randn(rows, columns) for _ in range(2)]
    inputs += [torch.randn(rows, hidden_size) for _ in range(spec.states)]
    inputs = [x.to(dtype) for x in inputs]
    grads = [torch.randn(rows, hidden_size).to(dtype) for _ in range(spec.states)]

    def reference_in(kind):
        x = [t.to(kind, copy=True).requires_grad_() for t in inputs]
        state = reference.cell(cell, x[0], x[1], tuple(x[2:]))
        found = torch.autograd.grad(state, x, [g.to(kind) for g in grads], allow_unused=True)
        unused = torch.zeros(rows, hidden_size, dtype=kind)
        return [*(s.detach() for s in state), *(unused if g is None else g for g in found)]

    gates_x, gates_h, h = inputs[:3]
    c = inputs[3] if spec.states == 2 else None
    new_h, new_c, saved = pointwise.forward(cell, gates_x, gates_h, h, c, True)
    grad_c = grads[1] if spec.states == 2 else None
    found = pointwise.backward(cell, grads[0], grad_c, h, c, new_h, new_c, saved)
    grad_x, grad_gates_h, grad_h, grad_old_c = found
    ours = [new_h, *([new_c] if spec.states == 2 else []), grad_x]
    ours += [grad_gates_h if spec.separate_columns else grad_x, grad_h]
    ours += [grad_old_c] if spec.states == 2 else []
    for i, (a, b, e) in enumerate(
        zip(ours, reference_in(dtype), reference_in(torch.float64), strict=True)
    ):
        assert_parity(a, b, e, f"{cell} cell, result {i}")
    lean = pointwise.forward(cell, gates_x, gates_h, h, c, False)
    assert torch.equal(lean[0], new_h) and lean[2].numel() == 0
    if dtype != torch.float32:
        return
    # No gradient of one state is a gradient of zeros.
    none = pointwise.backward(cell, grads[0], None, h, c, new_h, new_c, saved)
    zero = torch.zeros_like(h) if spec.states == 2 else None
    zeros = pointwise.backward(cell, grads[0], zero, h, c, new_h, new_c, saved)
    assert all(torch.equal(a, b) for a, b in zip(none, zeros, strict=True))


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
                    check_cell(cell, spec, torch.float16, 2, 21)


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
    for module in (cooperative, cooperative_reset_before):
        module.wait_for, module.announce = _late_wait, _late_announce
    for cell in ("lstm", "gru_reset_before", "gru_reset_before"):
        exchanged(cell, random.randrange(3))


def suite_unsynchronised():
    """Without the wait: must not agree with the reference."""
    cooperative.wait_for = _no_wait
    exchanged("lstm")


def suite_unsynchronised_reset():
    """The same of the kernels with two exchanges a step."""
    cooperative_reset_before.wait_for = _no_wait
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
    cooperative_reset_before.wait_for = _second_wait_alone
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
        exchanging = ("cooperative", "cooperative split", "cooperative split resident")
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
