"""Sequence kernels, one program per slice of the batch: the recurrence of any pointwise cell.

Computes the whole sequence of BLOCK_N rows, forward or backward, tile of units by tile of units.
Program p owns rows p * BLOCK_N ... for all steps, so programs never wait for each other.
On chip: one tile of gates at a time. h is read back from `output` (the gate gradients from
`grad_gates_x`) and c, or the GRU's h, from a float32 buffer: all in L1 or L2. The weights are read
from L2 once a step and program.
Synchronises on the program's own barrier, once a step.

Limitations:
- a step costs at least the time in which one multiprocessor reads G*H*H weights from L2; this
  schedule is for small H, for batches that fill the device, and for what no other one takes;
- rows end together in a program: it runs as many steps as its longest row;
- arithmetic is float32, storage float32, float16 or bfloat16.
"""

import triton
import triton.language as tl

from .tiles import (
    add_rows,
    gates_product,
    grads_product,
    kept,
    load_bias,
    load_either,
    load_planes,
    off,
    row_lengths,
    rows_at,
    store_planes,
    time_at,
    within,
)


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def forward_kernel(
    gates_x, weight, bias, h_0, c_0, lengths, offsets, reset, carried, output, h_n, c_n, c_sequence,
    saved, T, N, spans, reverse, SPAN: tl.constexpr, FORWARD: tl.constexpr, CARRIES: tl.constexpr,
    GATES: tl.constexpr, SAVED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `carried` is float32 [N, H]. None stands for what is absent."""
    H = spans * SPAN
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    started = rows < 0
    previous = rows
    for s in range(0, steps):
        t = time_at(s, steps, reverse)
        index = rows_at(t, rows, N, offsets)
        alive = t < length
        enters = kept(reset, t, rows, N, alive)
        last = alive & (time_at(length - 1 - t, length, reverse) == 0)
        operand = tl.where(started, output + previous * H, h_0 + rows * H)
        for first_unit in range(0, H, BLOCK_H):
            units = first_unit + tl.arange(0, BLOCK_H)
            unit_mask = units < H
            gates_h = gates_product(operand, enters, weight, first_unit, H, GATES, PRECISION,
                                    BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
            gates_h = add_rows(gates_h, load_bias(bias, units, unit_mask, H, GATES), GATES)
            tile = alive[:, None] & unit_mask[None, :]
            continued = (enters & started)[:, None] & unit_mask[None, :]
            begun = (enters & off(started))[:, None] & unit_mask[None, :]
            state = rows[:, None] * H + units[None, :]
            place = index[:, None] * H + units[None, :]
            planes = gates_x + index[:, None] * (GATES * H) + units[None, :]
            carry = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            if CARRIES == "c":
                carry = load_either(carried + state, continued, c_0 + state, begun)
            elif CARRIES == "h":
                carry = load_either(carried + state, continued, h_0 + state, begun)
            new_h, new_c, values = FORWARD(
                load_planes(planes, H, tile, GATES), gates_h, carry, carry
            )
            tl.store(output + place, new_h, mask=tile)
            tl.store(h_n + state, new_h, mask=last[:, None] & unit_mask[None, :])
            if CARRIES == "c":
                tl.store(carried + state, new_c, mask=tile)
                tl.store(c_n + state, new_c, mask=last[:, None] & unit_mask[None, :])
                if c_sequence is not None:
                    tl.store(c_sequence + place, new_c, mask=tile)
            elif CARRIES == "h":
                tl.store(carried + state, new_h, mask=tile)
            if saved is not None:
                store_planes(saved + index[:, None] * (SAVED * H) + units[None, :], H, tile,
                             values, SAVED)  # fmt: skip
        started = alive
        previous = index
        tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight, h_0, c_0, output, c_sequence, saved,
    lengths, offsets, reset, carried, grad_gates_x, grad_gates_h, grad_h_0, grad_c_0, T, N, spans,
    reverse, SPAN: tl.constexpr, BACKWARD: tl.constexpr, CARRIES: tl.constexpr, GATES: tl.constexpr,
    SAVED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `carried` is float32 [N, H]. None stands for what is absent.

    One iteration more than there are steps: the last only brings the gradient of the first state.
    """
    H = spans * SPAN
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    behind = rows < 0
    behind_index = rows
    flows = behind
    for s in range(0, steps + 1):
        t = time_at(s, steps, 1 - reverse)
        alive = within(t, length)
        inside = tl.minimum(tl.maximum(t, 0), steps - 1)
        index = rows_at(inside, rows, N, offsets)
        enters = kept(reset, inside, rows, N, alive)
        before = t - 1 + 2 * reverse
        follows = enters & within(before, length)
        begins = enters & off(follows)
        before_index = rows_at(tl.minimum(tl.maximum(before, 0), steps - 1), rows, N, offsets)
        for first_unit in range(0, H, BLOCK_H):
            units = first_unit + tl.arange(0, BLOCK_H)
            unit_mask = units < H
            state = rows[:, None] * H + units[None, :]
            place = index[:, None] * H + units[None, :]
            place_before = before_index[:, None] * H + units[None, :]
            tile = alive[:, None] & unit_mask[None, :]
            flow_tile = flows[:, None] & unit_mask[None, :]
            new_tile = (alive & off(behind))[:, None] & unit_mask[None, :]
            end_tile = (behind & off(alive))[:, None] & unit_mask[None, :]
            grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            carry = grad
            if CARRIES != "":
                carry = tl.load(carried + state, mask=flow_tile, other=0.0)
            if CARRIES == "h":
                grad = grads_product(grad_gates_x + behind_index * (GATES * H), flows,
                                     (GATES - 1) * H, weight, units, unit_mask, H, grad, PRECISION,
                                     BLOCK_K)  # fmt: skip
                grad = grads_product(grad_gates_h + behind_index * H, flows, H,
                                     weight + tl.cast(H, tl.int64) * (GATES - 1) * H, units,
                                     unit_mask, H, grad, PRECISION, BLOCK_K)  # fmt: skip
                grad += carry
            else:
                grad = grads_product(grad_gates_x + behind_index * (GATES * H), flows, GATES * H,
                                     weight, units, unit_mask, H, grad, PRECISION,
                                     BLOCK_K)  # fmt: skip
            tl.store(grad_h_0 + state, grad, mask=end_tile)
            if grad_h_n is not None:
                grad += tl.load(grad_h_n + state, mask=new_tile, other=0.0).to(tl.float32)
            if grad_output is not None:
                grad += tl.load(grad_output + place, mask=tile, other=0.0).to(tl.float32)
            follow_tile = follows[:, None] & unit_mask[None, :]
            begin_tile = begins[:, None] & unit_mask[None, :]
            new_state = grad
            old_state = grad
            if CARRIES == "c":
                tl.store(grad_c_0 + state, carry, mask=end_tile)
                if grad_c_n is not None:
                    carry += tl.load(grad_c_n + state, mask=new_tile, other=0.0).to(tl.float32)
                if grad_c_sequence is not None:
                    carry += tl.load(grad_c_sequence + place, mask=tile, other=0.0).to(tl.float32)
                new_state = tl.load(c_sequence + place, mask=tile, other=0.0).to(tl.float32)
                old_state = load_either(c_sequence + place_before, follow_tile, c_0 + state,
                                        begin_tile)  # fmt: skip
            else:
                new_state = tl.load(output + place, mask=tile, other=0.0).to(tl.float32)
                old_state = load_either(output + place_before, follow_tile, h_0 + state,
                                        begin_tile)  # fmt: skip
            values = ()
            if SAVED > 0:
                values = load_planes(saved + index[:, None] * (SAVED * H) + units[None, :], H,
                                     tile, SAVED)  # fmt: skip
            grad_gates, grad_hn, grad_h, grad_c = BACKWARD(
                values, old_state, old_state, new_state, new_state, grad, carry
            )
            store_planes(grad_gates_x + index[:, None] * (GATES * H) + units[None, :], H, tile,
                         grad_gates, GATES)  # fmt: skip
            if CARRIES == "c":
                tl.store(carried + state, grad_c, mask=tile)
            elif CARRIES == "h":
                tl.store(grad_gates_h + place, grad_hn, mask=tile)
                tl.store(carried + state, grad_h, mask=tile)
        behind = alive
        behind_index = index
        flows = enters
        tl.debug_barrier()
