"""The stepwise schedule: a product through torch and one fused cell kernel per step.

For what no sequence kernel runs well: large batches of large recurrences. It takes every shape,
never waits for the device and can be captured in a CUDA graph. The products follow torch's own
switch for TF32 in matrix products, as csrc/cuda/stepwise.cpp does.
Kernels: program (p, q) owns rows p, p + programs, ... of the batch, in the q-th block of BLOCK
units. On chip: everything between the loads and the stores, in float32.
Between steps: h in the storage dtype, where the product reads it; c, or the GRU's h, in float32.

Limitations: the host launches two kernels a step (four for gru_reset_before).
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cells import CELLS
from .cells import FUNCTIONS
from .pointwise import launch_rows
from .tiles import entering_limit, load_planes, row_limit, store_planes


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at"])
def forward_kernel(
    gates_x, gates_h, bias, h, carried, lengths, reset, output, c_sequence, saved, N, spans, rows,
    t, at, SPAN: tl.constexpr, FORWARD: tl.constexpr, CARRIES: tl.constexpr, GATES: tl.constexpr,
    SAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step t of `rows` rows, whose places in the sequence begin at row `at`.

    Shapes: gates_x, output, c_sequence, saved as in csrc/ops.cpp; gates_h [N, G*H] without bias; h
    and float32 `carried` [N, H] are read and written.
    """
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for n in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        place = (at + row) * H + units
        limit = row_limit(lengths, row, t, H)
        mask = units < limit
        enters = units < entering_limit(reset, row, t, N, limit)
        gates = ()
        planes = load_planes(gates_h + row * (GATES * H) + units, H, enters, GATES)
        for k in tl.static_range(GATES):
            gate = planes[k]
            if bias is not None:
                gate += tl.load(bias + k * H + units, mask=mask, other=0.0).to(tl.float32)
            gates = gates + (gate,)
        carry = tl.zeros((BLOCK,), tl.float32)
        if CARRIES != "":
            carry = tl.load(carried + row * H + units, mask=enters, other=0.0)
        new_h, new_c, values = FORWARD(
            load_planes(gates_x + (at + row) * (GATES * H) + units, H, mask, GATES),
            gates, carry, carry,
        )  # fmt: skip
        tl.store(output + place, new_h, mask=mask)
        tl.store(h + row * H + units, new_h, mask=mask)
        if CARRIES == "c":
            tl.store(carried + row * H + units, new_c, mask=mask)
            if c_sequence is not None:
                tl.store(c_sequence + place, new_c, mask=mask)
        elif CARRIES == "h":
            tl.store(carried + row * H + units, new_h, mask=mask)
        if saved is not None:
            store_planes(saved + (at + row) * (SAVED * H) + units, H, mask, values, SAVED)


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at", "before", "before_rows",
                               "before_at", "behind"])  # fmt: skip
def backward_kernel(
    grad_output, grad_c_sequence, recurrent, carried_h, carried_c, h_0, c_0, output, c_sequence,
    saved, lengths, reset, grad_gates_x, grad_gates_hn, grad_gates_h, N, spans, rows, t, at, before,
    before_rows, before_at, behind, SPAN: tl.constexpr, BACKWARD: tl.constexpr,
    CARRIES: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of step t, of whose N rows the first `rows` have a place, from `at` on.

    `before` is the step whose state entered, or -1, with `before_rows` rows from `before_at` on;
    `behind` the step that the backward came from, or -1. `recurrent` is what came through its
    product; carried_h and carried_c, float32, is the rest: of rows past their end, everything.
    grad_gates_h [N, G*H] is the operand of the product where that is not grad_gates_x.
    """
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    unit_mask = units < H
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        state = row * H + units
        place = (at + row) * H + units
        limit = row_limit(lengths, row, t, tl.where(n < rows, H, 0))
        mask = units < limit
        ended = unit_mask & (units >= limit)
        enters_limit = entering_limit(reset, row, t, N, limit)
        enters = units < enters_limit
        follow_limit = tl.where(n < before_rows, enters_limit, 0)
        follows = units < row_limit(lengths, row, before, follow_limit)
        begins = enters & (units >= row_limit(lengths, row, before, follow_limit))
        flows = units < entering_limit(reset, row, behind, N, H)
        grad = tl.load(carried_h + state, mask=unit_mask, other=0.0)
        grad += tl.load(recurrent + state, mask=flows, other=0.0).to(tl.float32)
        tl.store(carried_h + state, grad, mask=ended)
        tl.store(recurrent + state, tl.zeros((BLOCK,), tl.float32), mask=ended)
        if grad_output is not None:
            grad += tl.load(grad_output + place, mask=mask, other=0.0).to(tl.float32)
        carry = grad
        if CARRIES == "c":
            carry = tl.load(carried_c + state, mask=mask, other=0.0)
            if grad_c_sequence is not None:
                carry += tl.load(grad_c_sequence + place, mask=mask, other=0.0).to(tl.float32)
            sequence, first = c_sequence, c_0
        else:
            sequence, first = output, h_0
        new_state = tl.load(sequence + place, mask=mask, other=0.0).to(tl.float32)
        old_state = tl.load(sequence + (before_at + row) * H + units, mask=follows,
                            other=0.0).to(tl.float32)  # fmt: skip
        old_state += tl.load(first + state, mask=begins, other=0.0).to(tl.float32)
        values = ()
        if SAVED > 0:
            values = load_planes(saved + (at + row) * (SAVED * H) + units, H, mask, SAVED)
        grad_gates, grad_hn, grad_h, grad_c = BACKWARD(
            values, old_state, old_state, new_state, new_state, grad, carry
        )
        store_planes(grad_gates_x + (at + row) * (GATES * H) + units, H, mask, grad_gates, GATES)
        if CARRIES == "h":
            tl.store(grad_gates_hn + place, grad_hn, mask=mask)
            tl.store(carried_h + state, tl.where(enters, grad_h, 0.0), mask=mask)
            operand = grad_gates_h + row * (GATES * H) + units
            for k in tl.static_range(GATES):
                column = grad_hn if k == GATES - 1 else grad_gates[k]
                tl.store(operand + k * H, tl.where(mask, column, 0.0), mask=unit_mask)
        else:
            tl.store(carried_h + state, tl.zeros((BLOCK,), tl.float32), mask=mask)
        if CARRIES == "c":
            tl.store(carried_c + state, tl.where(enters, grad_c, 0.0), mask=mask)


class Steps:
    """The steps of a sequence in the order of a direction, and where each lies.

    Args:
        steps, batch: T, N.
        batch_sizes: rows alive at every step, int64 on the CPU, [T], or None.
        reverse: the sequence is run from its end.
    """

    def __init__(self, steps: int, batch: int, batch_sizes: Tensor | None, reverse: bool):
        self._sizes = [batch] * steps if batch_sizes is None else batch_sizes.tolist()
        self._order = range(steps - 1, -1, -1) if reverse else range(steps)
        self._offsets = [0]
        for size in self._sizes:
            self._offsets.append(self._offsets[-1] + size)

    def place(self, t: int) -> tuple[int, int]:
        """(rows, first row) of step t; none where t is no step."""
        return (self._sizes[t], self._offsets[t]) if 0 <= t < len(self._sizes) else (0, 0)

    def forward(self) -> Iterator[tuple[int, int, int]]:
        """(t, rows, first row) of every step."""
        return ((t, *self.place(t)) for t in self._order)

    def backward(self) -> Iterator[tuple[int, int, int]]:
        """The same from the last step to the first."""
        return ((t, *self.place(t)) for t in reversed(self._order))

    def before(self, t: int) -> tuple[int, int, int]:
        """(t, rows, first row) of the step whose state entered step t; t is -1 for none."""
        before = t - self._order.step
        return (before if 0 <= before < len(self._sizes) else -1, *self.place(before))


def carried_state(state: Tensor | None) -> Tensor | None:
    """A float32 copy of a state, [N, H]."""
    return None if state is None else state.to(torch.float32, copy=True).contiguous()


def carried_grad(grad: Tensor | None, like: Tensor) -> Tensor:
    """The same of a gradient; zeros for an absent one."""
    if grad is None:
        return torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return carried_state(grad)


def forward(
    cell: str, gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, h_0: Tensor,
    c_0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, output: Tensor, h_n: Tensor,
    c_n: Tensor | None, c_sequence: Tensor | None, saved: Tensor | None, steps: Steps,
) -> None:  # fmt: skip
    """Fill the results of a pointwise cell; tensors are contiguous, reset is uint8."""
    spec, functions = CELLS[cell], FUNCTIONS[cell]
    batch, hidden_size = h_0.shape
    gates_h = h_0.new_empty(batch, spec.gates * hidden_size)
    carried = carried_state({"c": c_0, "h": h_0, "": None}[functions.carries])
    h_n.copy_(h_0)
    for t, rows, at in steps.forward():
        torch.mm(h_n[:rows], weight_hh.t(), out=gates_h[:rows])
        results = (output, c_sequence, saved)
        launch_rows(
            forward_kernel, rows, h_0,
            (gates_x, gates_h, bias_hh, h_n, carried, lengths, reset, *results, batch),
            (rows, t, at), FORWARD=functions.forward, CARRIES=functions.carries, GATES=spec.gates,
            SAVED=spec.saved,
        )  # fmt: skip
    if c_n is not None:
        c_n.copy_(carried)


def backward(
    cell: str, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None,
    grad_c_sequence: Tensor | None, weight_hh: Tensor, h_0: Tensor, c_0: Tensor | None,
    output: Tensor, c_sequence: Tensor | None, saved: Tensor | None, lengths: Tensor | None,
    reset: Tensor | None, grad_gates_x: Tensor, grad_gates_hn: Tensor | None, grad_h_0: Tensor,
    grad_c_0: Tensor | None, steps: Steps,
) -> None:  # fmt: skip
    """Fill the gradients of a pointwise cell; tensors are contiguous, reset is uint8."""
    spec, functions = CELLS[cell], FUNCTIONS[cell]
    batch, hidden_size = h_0.shape
    recurrent = torch.zeros_like(h_0)
    carried_h = carried_grad(grad_h_n, h_0)
    carried_c = carried_grad(grad_c_n, h_0) if functions.carries == "c" else None
    operand = h_0.new_empty(batch, spec.gates * hidden_size) if spec.separate_columns else None
    rows_of_grads = grad_gates_x.view(-1, spec.gates * hidden_size)
    behind = -1
    for t, rows, at in steps.backward():
        results = (grad_gates_x, grad_gates_hn, operand)
        launch_rows(
            backward_kernel, batch, h_0,
            (grad_output, grad_c_sequence, recurrent, carried_h, carried_c, h_0, c_0, output,
             c_sequence, saved, lengths, reset, *results, batch),
            (rows, t, at, *steps.before(t), behind), BACKWARD=functions.backward,
            CARRIES=functions.carries, GATES=spec.gates, SAVED=spec.saved,
        )  # fmt: skip
        grads = rows_of_grads[at : at + rows] if operand is None else operand[:rows]
        torch.mm(grads, weight_hh, out=recurrent[:rows])
        behind = t
    finish(grad_h_0, carried_h, recurrent, reset, behind)
    if grad_c_0 is not None:
        grad_c_0.copy_(carried_c)


def finish(
    grad_h_0: Tensor, carried_h: Tensor, recurrent: Tensor, reset: Tensor | None, behind: int
) -> None:
    """Set grad_h_0 from what is left after step `behind`."""
    if reset is not None:
        recurrent.masked_fill_(reset[behind].bool().unsqueeze(-1), 0)
    grad_h_0.copy_(carried_h.add_(recurrent))
