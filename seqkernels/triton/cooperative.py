"""Sequence kernels, one group of programs per slice of the batch: any pointwise cell.

Computes the whole sequence of BLOCK_N rows, forward or backward, in one launch.
Program p is number p % U of group p // U, where U = ceil(H / BLOCK_H): a group owns BLOCK_N rows, a
program BLOCK_H units of them with all their gates, for all steps.
On chip: c, or the GRU's h, in float32 registers; the program's part of the weights in shared
memory where TILES says that it fits, otherwise it is read from L2 once a step.
Exchange: the results themselves. A step writes its part of `output` (backward: of the gate
gradients) to its own place, and the group's counter says how many parts are there, so nothing is
overwritten while a neighbour still reads it.
Synchronises on one monotonic counter per group: add with release after the stores, poll with
acquire before the loads; a group of one program (ALONE) needs its own barrier only. The launch is
cooperative: a grid that cannot be co-resident is an error, not a hang.

Limitations:
- the grid has at most one program per multiprocessor: plan.py refuses what exceeds it;
- every program of a group polls the same word;
- with SPLIT > 1 each warp multiplies its own part of the depth, and BLOCK_K counts for one warp:
  SPLIT must be num_warps, or the compiler repeats the product; with SPLIT == 1 warps share a tile;
- arithmetic is float32, storage float32, float16 or bfloat16.
"""

import triton
import triton.language as tl

from .exchange import announce, product, resident_weight, wait_for
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
    split_gates,
    store_planes,
    time_at,
    wide_columns,
    within,
)


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def forward_kernel(
    gates_x, weight, bias, h_0, c_0, lengths, offsets, reset, counters, output, h_n, c_n,
    c_sequence, saved, T, N, spans, reverse, SPAN: tl.constexpr, FORWARD: tl.constexpr,
    CARRIES: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr, ALONE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group."""
    H = spans * SPAN
    WIDTH: tl.constexpr = 4 if GATES > 2 else GATES
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    first_unit = (tl.program_id(0) % members) * BLOCK_H
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = first_unit + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    state = rows[:, None] * H + units[None, :]
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    bias_rows = load_bias(bias, units, unit_mask, H, GATES)
    columns, column_mask = wide_columns(first_unit, H, GATES, BLOCK_H)
    parts = resident_weight(weight, columns, column_mask, H, H, 1, TILES, SPLIT, BLOCK_K)
    started = rows < 0
    previous = rows
    carry = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    in_batch = (rows < N)[:, None] & unit_mask[None, :]
    if CARRIES == "c":
        carry = tl.load(c_0 + state, mask=in_batch, other=0.0).to(tl.float32)
    elif CARRIES == "h":
        carry = tl.load(h_0 + state, mask=in_batch, other=0.0).to(tl.float32)
    for s in range(0, steps):
        t = time_at(s, steps, reverse)
        index = rows_at(t, rows, N, offsets)
        alive = t < length
        enters = kept(reset, t, rows, N, alive)
        last = alive & (time_at(length - 1 - t, length, reverse) == 0)
        tile = alive[:, None] & unit_mask[None, :]
        last_tile = last[:, None] & unit_mask[None, :]
        # Loaded before the wait: it does not depend on the other programs.
        inputs = load_planes(gates_x + index[:, None] * (GATES * H) + units[None, :], H, tile,
                             GATES)  # fmt: skip
        wait_for(counters, group, s * members, ALONE, "cooperative forward")
        operand = tl.where(started, output + previous * H, h_0 + rows * H)
        if SPLIT == 1:
            gates_h = gates_product(operand, enters, weight, first_unit, H, GATES, PRECISION,
                                    BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
        else:
            wide = tl.zeros((SPLIT, BLOCK_N, BLOCK_H * WIDTH), tl.float32)
            wide = product(operand, enters, parts, weight, columns, column_mask, H, H, 1, wide,
                           TILES, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
            gates_h = split_gates(tl.sum(wide, 0), GATES, BLOCK_N, BLOCK_H)
        gates_h = add_rows(gates_h, bias_rows, GATES)
        entering = tl.where(enters[:, None], carry, 0.0)
        new_h, new_c, values = FORWARD(inputs, gates_h, entering, entering)
        place = index[:, None] * H + units[None, :]
        tl.store(output + place, new_h, mask=tile)
        announce(counters, group, ALONE)
        # Stored after the announcement: nobody waits for it.
        tl.store(h_n + state, new_h, mask=last_tile)
        if CARRIES == "c":
            carry = tl.where(alive[:, None], new_c, carry)
            tl.store(c_n + state, new_c, mask=last_tile)
            if c_sequence is not None:
                tl.store(c_sequence + place, new_c, mask=tile)
        elif CARRIES == "h":
            carry = tl.where(alive[:, None], new_h, carry)
        if saved is not None:
            store_planes(saved + index[:, None] * (SAVED * H) + units[None, :], H, tile, values,
                         SAVED)  # fmt: skip
        started = alive
        previous = index


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight, h_0, c_0, output, c_sequence, saved,
    lengths, offsets, reset, counters, grad_gates_x, grad_gates_h, grad_h_0, grad_c_0, T, N, spans,
    reverse, SPAN: tl.constexpr, BACKWARD: tl.constexpr, CARRIES: tl.constexpr, GATES: tl.constexpr,
    SAVED: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr, TILES_SECOND: tl.constexpr,
    AHEAD: tl.constexpr, SPLIT: tl.constexpr, ALONE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group.

    TILES parts of the weights stay in shared memory, and with them TILES_SECOND of the GRU's n
    columns, whose gradients stand in grad_gates_h. One iteration more than there are steps: the
    last only brings the gradient of the first state.
    """
    H = spans * SPAN
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = (tl.program_id(0) % members) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    state = rows[:, None] * H + units[None, :]
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    depth = GATES * H
    weight_hn = weight
    if CARRIES == "h":
        depth = (GATES - 1) * H
        weight_hn = weight + depth * H
    parts = resident_weight(weight, units, unit_mask, 1, depth, H, TILES, SPLIT,
                            BLOCK_K)  # fmt: skip
    parts_hn = resident_weight(weight_hn, units, unit_mask, 1, H, H, TILES_SECOND, SPLIT, BLOCK_K)
    behind = rows < 0
    behind_index = rows
    flows = behind
    carry = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
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
        tile = alive[:, None] & unit_mask[None, :]
        new_tile = (alive & off(behind))[:, None] & unit_mask[None, :]
        end_tile = (behind & off(alive))[:, None] & unit_mask[None, :]
        follow_tile = follows[:, None] & unit_mask[None, :]
        begin_tile = begins[:, None] & unit_mask[None, :]
        place = index[:, None] * H + units[None, :]
        place_before = before_index[:, None] * H + units[None, :]
        # Everything but the product is loaded before the wait.
        arriving = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
        if grad_h_n is not None:
            arriving += tl.load(grad_h_n + state, mask=new_tile, other=0.0).to(tl.float32)
        if grad_output is not None:
            arriving += tl.load(grad_output + place, mask=tile, other=0.0).to(tl.float32)
        arriving_c = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
        if CARRIES == "c":
            if grad_c_n is not None:
                arriving_c += tl.load(grad_c_n + state, mask=new_tile, other=0.0).to(tl.float32)
            if grad_c_sequence is not None:
                arriving_c += tl.load(grad_c_sequence + place, mask=tile, other=0.0).to(tl.float32)
            new_state = tl.load(c_sequence + place, mask=tile, other=0.0).to(tl.float32)
            old_state = load_either(c_sequence + place_before, follow_tile, c_0 + state,
                                    begin_tile)  # fmt: skip
        else:
            new_state = tl.load(output + place, mask=tile, other=0.0).to(tl.float32)
            old_state = load_either(output + place_before, follow_tile, h_0 + state, begin_tile)
        values = ()
        if SAVED > 0:
            values = load_planes(saved + index[:, None] * (SAVED * H) + units[None, :], H, tile,
                                 SAVED)  # fmt: skip
        wait_for(counters, group, s * members, ALONE, "cooperative backward")
        operand = grad_gates_x + behind_index * (GATES * H)
        if SPLIT == 1:
            grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            grad = grads_product(operand, flows, depth, weight, units, unit_mask, H, grad,
                                 PRECISION, BLOCK_K)  # fmt: skip
            if CARRIES == "h":
                grad = grads_product(grad_gates_h + behind_index * H, flows, H, weight_hn, units,
                                     unit_mask, H, grad, PRECISION, BLOCK_K)  # fmt: skip
        else:
            total = tl.zeros((SPLIT, BLOCK_N, BLOCK_H), tl.float32)
            total = product(operand, flows, parts, weight, units, unit_mask, 1, depth, H, total,
                            TILES, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
            if CARRIES == "h":
                total = product(grad_gates_h + behind_index * H, flows, parts_hn, weight_hn, units,
                                unit_mask, 1, H, H, total, TILES_SECOND, AHEAD, SPLIT, PRECISION,
                                BLOCK_K)  # fmt: skip
            grad = tl.sum(total, 0)
        carry = tl.where(flows[:, None], carry, 0.0)
        if CARRIES == "h":
            grad += carry
        tl.store(grad_h_0 + state, grad, mask=end_tile)
        if CARRIES == "c":
            tl.store(grad_c_0 + state, carry, mask=end_tile)
        grad_gates, grad_hn, grad_h, grad_c = BACKWARD(
            values, old_state, old_state, new_state, new_state, grad + arriving, carry + arriving_c
        )
        store_planes(grad_gates_x + index[:, None] * (GATES * H) + units[None, :], H, tile,
                     grad_gates, GATES)  # fmt: skip
        if CARRIES == "h":
            tl.store(grad_gates_h + place, grad_hn, mask=tile)
            carry = grad_h
        elif CARRIES == "c":
            carry = grad_c
        announce(counters, group, ALONE)
        behind = alive
        behind_index = index
        flows = enters
