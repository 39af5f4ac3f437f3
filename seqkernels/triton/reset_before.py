"""Sequence kernels of the GRU with the reset gate before the product, one program per batch slice.

Computes the whole sequence of BLOCK_N rows, forward or backward. A step has two products, with h
and with r * h (csrc/cells.h: GruResetBefore), so it has two stages over all tiles of units.
Program p owns rows p * BLOCK_N ... for all steps, so programs never wait for each other.
On chip: one tile of gates at a time. h in float32, z and r * h pass between the stages and steps
through buffers of [N, H] that stay in L1 or L2.
Synchronises on the program's own barrier, twice a step.

Limitations: those of sliced.py; there is no cooperative schedule for this cell.
"""

import triton
import triton.language as tl

from .cells import (
    gru_reset_before_reset,
    gru_reset_before_reset_backward,
    gru_reset_before_update,
    gru_reset_before_update_backward,
)
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
    time_at,
    within,
)


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def forward_kernel(
    gates_x, weight, bias, h_0, lengths, offsets, reset, carried, update, reset_h, output, h_n,
    saved, T, N, spans, reverse, SPAN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; h `carried` and z in `update` are float32, `reset_h` is r * h."""
    H = spans * SPAN
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    weight_n = weight + tl.cast(H, tl.int64) * 2 * H
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
            tile = alive[:, None] & unit_mask[None, :]
            continued = (enters & started)[:, None] & unit_mask[None, :]
            begun = (enters & off(started))[:, None] & unit_mask[None, :]
            state = rows[:, None] * H + units[None, :]
            bias_r, bias_z = load_bias(bias, units, unit_mask, H, 2)
            gates_r, gates_z = gates_product(operand, enters, weight, first_unit, H, 2, PRECISION,
                                             BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
            h = load_either(carried + state, continued, h_0 + state, begun)
            inputs = load_planes(gates_x + index[:, None] * (3 * H) + units[None, :], H, tile, 2)
            r, z, rh = gru_reset_before_reset(
                inputs[0], inputs[1], gates_r + bias_r, gates_z + bias_z, h
            )
            tl.store(reset_h + state, rh, mask=tile)
            tl.store(update + state, z, mask=tile)
            if saved is not None:
                values = saved + index[:, None] * (3 * H) + units[None, :]
                tl.store(values, r, mask=tile)
                tl.store(values + H, z, mask=tile)
        tl.debug_barrier()
        for first_unit in range(0, H, BLOCK_H):
            units = first_unit + tl.arange(0, BLOCK_H)
            unit_mask = units < H
            tile = alive[:, None] & unit_mask[None, :]
            continued = (enters & started)[:, None] & unit_mask[None, :]
            begun = (enters & off(started))[:, None] & unit_mask[None, :]
            state = rows[:, None] * H + units[None, :]
            bias_n = tl.zeros((1, BLOCK_H), tl.float32)
            if bias is not None:
                (bias_n,) = load_bias(bias + 2 * H, units, unit_mask, H, 1)
            (gates_n,) = gates_product(reset_h + rows * H, alive, weight_n, first_unit, H, 1,
                                       PRECISION, BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
            h = load_either(carried + state, continued, h_0 + state, begun)
            z = tl.load(update + state, mask=tile, other=0.0)
            inputs = gates_x + index[:, None] * (3 * H) + 2 * H + units[None, :]
            gates_x_n = tl.load(inputs, mask=tile, other=0.0).to(tl.float32)
            n, new_h = gru_reset_before_update(gates_x_n, gates_n + bias_n, h, z)
            tl.store(output + index[:, None] * H + units[None, :], new_h, mask=tile)
            tl.store(carried + state, new_h, mask=tile)
            tl.store(h_n + state, new_h, mask=last[:, None] & unit_mask[None, :])
            if saved is not None:
                tl.store(saved + index[:, None] * (3 * H) + 2 * H + units[None, :], n, mask=tile)
        started = alive
        previous = index
        tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, weight, h_0, output, saved, lengths, offsets, reset, carried,
    grad_gates_x, grad_h_0, T, N, spans, reverse, SPAN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `carried` is float32 [N, H]. None stands for what is absent.

    One iteration more than there are steps: the last only brings the gradient of the first state.
    """
    H = spans * SPAN
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    weight_n = weight + tl.cast(H, tl.int64) * 2 * H
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
        grads = grad_gates_x + index * (3 * H)
        for first_unit in range(0, H, BLOCK_H):
            units = first_unit + tl.arange(0, BLOCK_H)
            unit_mask = units < H
            state = rows[:, None] * H + units[None, :]
            tile = alive[:, None] & unit_mask[None, :]
            flow_tile = flows[:, None] & unit_mask[None, :]
            new_tile = (alive & off(behind))[:, None] & unit_mask[None, :]
            end_tile = (behind & off(alive))[:, None] & unit_mask[None, :]
            follow_tile = follows[:, None] & unit_mask[None, :]
            begin_tile = begins[:, None] & unit_mask[None, :]
            grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            grad = grads_product(grad_gates_x + behind_index * (3 * H), flows, 2 * H, weight,
                                 units, unit_mask, H, grad, PRECISION, BLOCK_K)  # fmt: skip
            grad += tl.load(carried + state, mask=flow_tile, other=0.0)
            tl.store(grad_h_0 + state, grad, mask=end_tile)
            if grad_h_n is not None:
                grad += tl.load(grad_h_n + state, mask=new_tile, other=0.0).to(tl.float32)
            if grad_output is not None:
                place = grad_output + index[:, None] * H + units[None, :]
                grad += tl.load(place, mask=tile, other=0.0).to(tl.float32)
            h = load_either(output + before_index[:, None] * H + units[None, :], follow_tile,
                            h_0 + state, begin_tile)  # fmt: skip
            values = load_planes(saved + index[:, None] * (3 * H) + H + units[None, :], H, tile,
                                 2)  # fmt: skip
            grad_z, grad_n, grad_h = gru_reset_before_update_backward(values[0], values[1], h, grad)
            tl.store(grads[:, None] + H + units[None, :], grad_z, mask=tile)
            tl.store(grads[:, None] + 2 * H + units[None, :], grad_n, mask=tile)
            tl.store(carried + state, grad_h, mask=tile)
        tl.debug_barrier()
        for first_unit in range(0, H, BLOCK_H):
            units = first_unit + tl.arange(0, BLOCK_H)
            unit_mask = units < H
            state = rows[:, None] * H + units[None, :]
            tile = alive[:, None] & unit_mask[None, :]
            follow_tile = follows[:, None] & unit_mask[None, :]
            begin_tile = begins[:, None] & unit_mask[None, :]
            grad_rh = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            grad_rh = grads_product(grads + 2 * H, alive, H, weight_n, units, unit_mask, H, grad_rh,
                                    PRECISION, BLOCK_K)  # fmt: skip
            h = load_either(output + before_index[:, None] * H + units[None, :], follow_tile,
                            h_0 + state, begin_tile)  # fmt: skip
            place = saved + index[:, None] * (3 * H) + units[None, :]
            r = tl.load(place, mask=tile, other=0.0).to(tl.float32)
            grad_r, grad_h = gru_reset_before_reset_backward(r, h, grad_rh)
            tl.store(grads[:, None] + units[None, :], grad_r, mask=tile)
            grad_h += tl.load(carried + state, mask=tile, other=0.0)
            tl.store(carried + state, grad_h, mask=tile)
        behind = alive
        behind_index = index
        flows = enters
        tl.debug_barrier()
