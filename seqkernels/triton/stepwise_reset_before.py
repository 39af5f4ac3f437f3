"""The stepwise schedule of the GRU with the reset gate before the product: two products a step.

Forward: the product with h, a kernel for r, z and r * h, the product with r * h, a kernel for n and
the new h. Backward: the gradients of z and n, a product, the gradient of r, a product.
Programs, precision and limits are those of stepwise.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cells import (
    gru_reset_before_reset,
    gru_reset_before_reset_backward,
    gru_reset_before_update,
    gru_reset_before_update_backward,
)
from .pointwise import launch_rows
from .stepwise import Steps, carried_grad, carried_state, finish
from .tiles import entering_limit, load_planes, row_limit


@triton.jit
def load_bias_units(bias, units, mask, gate: tl.constexpr, H):
    """One gate's bias, or zeros where there is none."""
    if bias is None:
        return tl.zeros(units.shape, tl.float32)
    else:
        return tl.load(bias + gate * H + units, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at"])
def reset_kernel(
    gates_x, gates_h, bias, carried, lengths, reset, update, reset_h, saved, N, spans, rows, t, at,
    SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First stage of step t: z to `update`, float32, and r * h to `reset_h`; gates_h [N, 2H]."""
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for n in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        limit = row_limit(lengths, row, t, H)
        mask = units < limit
        enters = units < entering_limit(reset, row, t, N, limit)
        h = tl.load(carried + row * H + units, mask=enters, other=0.0)
        x = load_planes(gates_x + (at + row) * (3 * H) + units, H, mask, 2)
        gates = load_planes(gates_h + row * (2 * H) + units, H, enters, 2)
        r, z, rh = gru_reset_before_reset(
            x[0],
            x[1],
            gates[0] + load_bias_units(bias, units, mask, 0, H),
            gates[1] + load_bias_units(bias, units, mask, 1, H),
            h,
        )
        tl.store(update + row * H + units, z, mask=mask)
        tl.store(reset_h + row * H + units, rh, mask=mask)
        if saved is not None:
            values = saved + (at + row) * (3 * H) + units
            tl.store(values, r, mask=mask)
            tl.store(values + H, z, mask=mask)


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at"])
def update_kernel(
    gates_x, gates_n, bias, h, carried, lengths, reset, update, output, saved, N, spans, rows, t,
    at, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second stage: the new h to `output`, h and float32 `carried`; gates_n [N, H]."""
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for n in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        state = row * H + units
        limit = row_limit(lengths, row, t, H)
        mask = units < limit
        enters = units < entering_limit(reset, row, t, N, limit)
        old_h = tl.load(carried + state, mask=enters, other=0.0)
        z = tl.load(update + state, mask=mask, other=0.0)
        x = tl.load(gates_x + (at + row) * (3 * H) + 2 * H + units, mask=mask, other=0.0)
        gate = tl.load(gates_n + state, mask=mask, other=0.0).to(tl.float32)
        gate += load_bias_units(bias, units, mask, 2, H)
        candidate, new_h = gru_reset_before_update(x.to(tl.float32), gate, old_h, z)
        tl.store(output + (at + row) * H + units, new_h, mask=mask)
        tl.store(h + state, new_h, mask=mask)
        tl.store(carried + state, new_h, mask=mask)
        if saved is not None:
            tl.store(saved + (at + row) * (3 * H) + 2 * H + units, candidate, mask=mask)


@triton.jit
def load_entering(h_0, output, lengths, row, units, before, before_rows, before_at, enters_limit,
                  H):  # fmt: skip
    """The h that entered a step, in float32: of the step before, the first, or zero if reset."""
    follow_limit = row_limit(lengths, row, before, tl.where(row < before_rows, enters_limit, 0))
    follows = units < follow_limit
    begins = (units < enters_limit) & (units >= follow_limit)
    h = tl.load(output + (before_at + row) * H + units, mask=follows, other=0.0).to(tl.float32)
    return h + tl.load(h_0 + row * H + units, mask=begins, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at", "before", "before_rows",
                               "before_at", "behind"])  # fmt: skip
def update_backward_kernel(
    grad_output, recurrent, carried_h, h_0, output, saved, lengths, reset, grad_gates_x, N, spans,
    rows, t, at, before, before_rows, before_at, behind, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of z and n at step t; arguments as in stepwise.backward_kernel."""
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    unit_mask = units < H
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        state = row * H + units
        limit = row_limit(lengths, row, t, tl.where(n < rows, H, 0))
        mask = units < limit
        ended = unit_mask & (units >= limit)
        enters_limit = entering_limit(reset, row, t, N, limit)
        flows = units < entering_limit(reset, row, behind, N, H)
        grad = tl.load(carried_h + state, mask=unit_mask, other=0.0)
        grad += tl.load(recurrent + state, mask=flows, other=0.0).to(tl.float32)
        tl.store(carried_h + state, grad, mask=ended)
        tl.store(recurrent + state, tl.zeros((BLOCK,), tl.float32), mask=ended)
        if grad_output is not None:
            place = (at + row) * H + units
            grad += tl.load(grad_output + place, mask=mask, other=0.0).to(tl.float32)
        h = load_entering(h_0, output, lengths, row, units, before, before_rows, before_at,
                          enters_limit, H)  # fmt: skip
        z, candidate = load_planes(saved + (at + row) * (3 * H) + H + units, H, mask, 2)
        grad_z, grad_n, grad_h = gru_reset_before_update_backward(z, candidate, h, grad)
        grads = grad_gates_x + (at + row) * (3 * H) + units
        tl.store(grads + H, grad_z, mask=mask)
        tl.store(grads + 2 * H, grad_n, mask=mask)
        tl.store(carried_h + state, tl.where(units < enters_limit, grad_h, 0.0), mask=mask)


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at", "before", "before_rows",
                               "before_at"])  # fmt: skip
def reset_backward_kernel(
    grad_rh, carried_h, h_0, output, saved, lengths, reset, grad_gates_x, N, spans, rows, t, at,
    before, before_rows, before_at, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of r at step t, and what it adds to that of h; grad_rh [N, H]."""
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for n in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        state = row * H + units
        limit = row_limit(lengths, row, t, H)
        mask = units < limit
        enters_limit = entering_limit(reset, row, t, N, limit)
        h = load_entering(h_0, output, lengths, row, units, before, before_rows, before_at,
                          enters_limit, H)  # fmt: skip
        r = tl.load(saved + (at + row) * (3 * H) + units, mask=mask, other=0.0).to(tl.float32)
        arriving = tl.load(grad_rh + state, mask=mask, other=0.0).to(tl.float32)
        grad_r, through = gru_reset_before_reset_backward(r, h, arriving)
        tl.store(grad_gates_x + (at + row) * (3 * H) + units, grad_r, mask=mask)
        enters = units < enters_limit
        carry = tl.load(carried_h + state, mask=enters, other=0.0)
        tl.store(carried_h + state, carry + through, mask=enters)


def forward(
    gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, h_0: Tensor,
    lengths: Tensor | None, reset: Tensor | None, output: Tensor, h_n: Tensor,
    saved: Tensor | None, steps: Steps,
) -> None:  # fmt: skip
    """Fill the results; tensors are contiguous, reset is uint8."""
    batch, hidden_size = h_0.shape
    weight_first, weight_second = weight_hh.t().split((2 * hidden_size, hidden_size), 1)
    gates_h, gates_n = h_0.new_empty(batch, 2 * hidden_size), torch.empty_like(h_0)
    carried, reset_h = carried_state(h_0), torch.zeros_like(h_0)
    update = torch.empty_like(carried)
    h_n.copy_(h_0)
    for t, rows, at in steps.forward():
        place = (rows, t, at)
        torch.mm(h_n[:rows], weight_first, out=gates_h[:rows])
        first = (gates_x, gates_h, bias_hh, carried, lengths, reset, update, reset_h, saved, batch)
        launch_rows(reset_kernel, rows, h_0, first, place)
        torch.mm(reset_h[:rows], weight_second, out=gates_n[:rows])
        second = (gates_x, gates_n, bias_hh, h_n, carried, lengths, reset, update, output, saved)
        launch_rows(update_kernel, rows, h_0, (*second, batch), place)


def backward(
    grad_output: Tensor | None, grad_h_n: Tensor | None, weight_hh: Tensor, h_0: Tensor,
    output: Tensor, saved: Tensor, lengths: Tensor | None, reset: Tensor | None,
    grad_gates_x: Tensor, grad_h_0: Tensor, steps: Steps,
) -> None:  # fmt: skip
    """Fill the gradients; tensors are contiguous, reset is uint8."""
    batch, hidden_size = h_0.shape
    weight_first, weight_second = weight_hh.split((2 * hidden_size, hidden_size))
    recurrent, grad_rh = torch.zeros_like(h_0), torch.empty_like(h_0)
    carried_h = carried_grad(grad_h_n, h_0)
    rows_of_grads = grad_gates_x.view(-1, 3 * hidden_size)
    behind = -1
    for t, rows, at in steps.backward():
        place = (rows, t, at, *steps.before(t))
        kept = (h_0, output, saved, lengths, reset, grad_gates_x, batch)
        first = (grad_output, recurrent, carried_h, *kept)
        launch_rows(update_backward_kernel, batch, h_0, first, (*place, behind))
        grads = rows_of_grads[at : at + rows]
        torch.mm(grads[:, 2 * hidden_size :], weight_second, out=grad_rh[:rows])
        launch_rows(reset_backward_kernel, rows, h_0, (grad_rh, carried_h, *kept), place)
        torch.mm(grads[:, : 2 * hidden_size], weight_first, out=recurrent[:rows])
        behind = t
    finish(grad_h_0, carried_h, recurrent, reset, behind)
