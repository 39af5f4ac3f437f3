"""Sequence kernels of the GRU with the reset gate before the product, one group per batch slice.

Computes the whole sequence of BLOCK_N rows, forward or backward, in one launch. A step has two
products, with h and with r * h (csrc/cells.h: GruResetBefore), and the second needs r * h of every
unit, so a step has two exchanges.
Programs are grouped as in cooperative.py: a program owns BLOCK_H units of BLOCK_N rows.
On chip: h and z of the program's units in float32 registers, its part of the weights in shared
memory where TILES and TILES_N say that they fit.
Exchange: forward, h through `output` and r * h through `reset_h` [N, H]; backward, the gate
gradients through `grad_gates_x`. `reset_h` is the only place that is written again, one step later:
a program does so after it has seen the whole group's h of this step, which every member announces
after its last load of r * h.
Synchronises on the group's counter, twice a step.

Limitations: those of cooperative.py.
"""

import triton
import triton.language as tl

from .cells import (
    gru_reset_before_reset,
    gru_reset_before_reset_backward,
    gru_reset_before_update,
    gru_reset_before_update_backward,
)
from .exchange import announce, product, resident_weight, wait_for
from .tiles import (
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
    time_at,
    wide_columns,
    within,
)


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def forward_kernel(
    gates_x, weight, bias, h_0, lengths, offsets, reset, counters, reset_h, output, h_n, saved, T,
    N, spans, reverse, SPAN: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr,
    TILES_SECOND: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr, ALONE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group; `reset_h` is r * h."""
    H = spans * SPAN
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    first_unit = (tl.program_id(0) % members) * BLOCK_H
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = first_unit + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    state = rows[:, None] * H + units[None, :]
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    bias_r, bias_z = load_bias(bias, units, unit_mask, H, 2)
    bias_n = tl.zeros((1, BLOCK_H), tl.float32)
    if bias is not None:
        (bias_n,) = load_bias(bias + 2 * H, units, unit_mask, H, 1)
    columns, column_mask = wide_columns(first_unit, H, 2, BLOCK_H)
    weight_n = weight + tl.cast(H, tl.int64) * 2 * H
    parts = resident_weight(weight, columns, column_mask, H, H, 1, TILES, SPLIT, BLOCK_K)
    parts_n = resident_weight(weight_n, units, unit_mask, H, H, 1, TILES_SECOND, SPLIT, BLOCK_K)
    started = rows < 0
    previous = rows
    in_batch = (rows < N)[:, None] & unit_mask[None, :]
    carry = tl.load(h_0 + state, mask=in_batch, other=0.0).to(tl.float32)
    for s in range(0, steps):
        t = time_at(s, steps, reverse)
        index = rows_at(t, rows, N, offsets)
        alive = t < length
        enters = kept(reset, t, rows, N, alive)
        last = alive & (time_at(length - 1 - t, length, reverse) == 0)
        tile = alive[:, None] & unit_mask[None, :]
        # Loaded before the wait: it does not depend on the other programs.
        inputs = load_planes(gates_x + index[:, None] * (3 * H) + units[None, :], H, tile, 3)
        h = tl.where(enters[:, None], carry, 0.0)
        wait_for(counters, group, 2 * s * members, ALONE, "cooperative_reset_before forward")
        operand = tl.where(started, output + previous * H, h_0 + rows * H)
        if SPLIT == 1:
            gates_r, gates_z = gates_product(operand, enters, weight, first_unit, H, 2, PRECISION,
                                             BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
        else:
            wide = tl.zeros((SPLIT, BLOCK_N, BLOCK_H * 2), tl.float32)
            wide = product(operand, enters, parts, weight, columns, column_mask, H, H, 1, wide,
                           TILES, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
            gates_r, gates_z = split_gates(tl.sum(wide, 0), 2, BLOCK_N, BLOCK_H)
        r, z, rh = gru_reset_before_reset(
            inputs[0], inputs[1], gates_r + bias_r, gates_z + bias_z, h
        )
        tl.store(reset_h + state, rh, mask=tile)
        announce(counters, group, ALONE)
        values = index[:, None] * (3 * H) + units[None, :]
        if saved is not None:
            tl.store(saved + values, r, mask=tile)
            tl.store(saved + values + H, z, mask=tile)
        wait_for(counters, group, (2 * s + 1) * members, ALONE, "cooperative_reset_before forward")
        if SPLIT == 1:
            (gates_n,) = gates_product(reset_h + rows * H, alive, weight_n, first_unit, H, 1,
                                       PRECISION, BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
        else:
            wide_n = tl.zeros((SPLIT, BLOCK_N, BLOCK_H), tl.float32)
            wide_n = product(reset_h + rows * H, alive, parts_n, weight_n, units, unit_mask, H, H,
                             1, wide_n, TILES_SECOND, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
            gates_n = tl.sum(wide_n, 0)
        n, new_h = gru_reset_before_update(inputs[2], gates_n + bias_n, h, z)
        tl.store(output + index[:, None] * H + units[None, :], new_h, mask=tile)
        announce(counters, group, ALONE)
        # Stored after the announcement: nobody waits for it.
        tl.store(h_n + state, new_h, mask=last[:, None] & unit_mask[None, :])
        if saved is not None:
            tl.store(saved + values + 2 * H, n, mask=tile)
        carry = tl.where(alive[:, None], new_h, carry)
        started = alive
        previous = index


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, weight, h_0, output, saved, lengths, offsets, reset, counters,
    grad_gates_x, grad_h_0, T, N, spans, reverse, SPAN: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, TILES_SECOND: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr,
    ALONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group.

    One iteration more than there are steps: the last only brings the gradient of the first state.
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
    weight_n = weight + tl.cast(H, tl.int64) * 2 * H
    parts = resident_weight(weight, units, unit_mask, 1, 2 * H, H, TILES, SPLIT, BLOCK_K)
    parts_n = resident_weight(weight_n, units, unit_mask, 1, H, H, TILES_SECOND, SPLIT, BLOCK_K)
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
        # Everything but the products is loaded before the wait.
        arriving = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
        if grad_h_n is not None:
            arriving += tl.load(grad_h_n + state, mask=new_tile, other=0.0).to(tl.float32)
        if grad_output is not None:
            arriving += tl.load(grad_output + place, mask=tile, other=0.0).to(tl.float32)
        h = load_either(output + before_index[:, None] * H + units[None, :], follow_tile,
                        h_0 + state, begin_tile)  # fmt: skip
        r, z, n = load_planes(saved + index[:, None] * (3 * H) + units[None, :], H, tile, 3)
        wait_for(counters, group, 2 * s * members, ALONE, "cooperative_reset_before backward")
        operand = grad_gates_x + behind_index * (3 * H)
        if SPLIT == 1:
            grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            grad = grads_product(operand, flows, 2 * H, weight, units, unit_mask, H, grad,
                                 PRECISION, BLOCK_K)  # fmt: skip
        else:
            total = tl.zeros((SPLIT, BLOCK_N, BLOCK_H), tl.float32)
            total = product(operand, flows, parts, weight, units, unit_mask, 1, 2 * H, H, total,
                            TILES, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
            grad = tl.sum(total, 0)
        grad += tl.where(flows[:, None], carry, 0.0)
        tl.store(grad_h_0 + state, grad, mask=end_tile)
        grad_z, grad_n, grad_h = gru_reset_before_update_backward(z, n, h, grad + arriving)
        grads = grad_gates_x + index[:, None] * (3 * H) + units[None, :]
        tl.store(grads + 2 * H, grad_n, mask=tile)
        announce(counters, group, ALONE)
        wait_for(counters, group, (2 * s + 1) * members, ALONE, "cooperative_reset_before backward")
        operand_n = grad_gates_x + index * (3 * H) + 2 * H
        if SPLIT == 1:
            grad_rh = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            grad_rh = grads_product(operand_n, alive, H, weight_n, units, unit_mask, H, grad_rh,
                                    PRECISION, BLOCK_K)  # fmt: skip
        else:
            total_n = tl.zeros((SPLIT, BLOCK_N, BLOCK_H), tl.float32)
            total_n = product(operand_n, alive, parts_n, weight_n, units, unit_mask, 1, H, H,
                              total_n, TILES_SECOND, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
            grad_rh = tl.sum(total_n, 0)
        grad_r, through_reset = gru_reset_before_reset_backward(r, h, grad_rh)
        tl.store(grads, grad_r, mask=tile)
        tl.store(grads + H, grad_z, mask=tile)
        announce(counters, group, ALONE)
        carry = grad_h + through_reset
        behind = alive
        behind_index = index
        flows = enters
