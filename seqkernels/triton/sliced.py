"""Sequence kernels, one program per slice of the batch: the recurrence of any cell.

Computes the whole sequence of BLOCK_N rows, forward or backward, tile of units by tile of units.
Program p owns rows p * BLOCK_N ... for all steps, so programs never wait for each other.
On chip: one tile of gates at a time. h is read back from `output` (the gate gradients from
`grad_gates_x`), what is carried in float32 from a buffer, and so is what one stage of a step leaves
to the next: all in L1 or L2. The weights are read from L2 once a step and program.
Synchronises on the program's own barrier, once a stage.

Limitations:
- a step costs at least the time in which one multiprocessor reads G*H*H weights from L2; this
  schedule is for small H, for batches that fill the device, and for what no other one takes;
- rows end together in a program: it runs as many steps as its longest row;
- arithmetic is float32, storage float32, float16 or bfloat16.
"""

import triton
import triton.language as tl

from . import states, tiles


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def forward_kernel(
    gates_x, weight, bias, h_0, c_0, lengths, offsets, reset, carried, between, operands, output,
    h_n, c_n, c_sequence, saved, T, N, spans, reverse, SPAN: tl.constexpr, CELL: tl.constexpr,
    FORWARD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp. None stands for what is absent.

    Float32 `carried` holds states, `between` the saved values that later stages of a step read;
    `operands` holds what their products read. All are [N, ..*H], side by side.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    started = rows < 0
    previous = rows
    for s in range(0, steps):
        t = tiles.time_at(s, steps, reverse)
        index = tiles.rows_at(t, rows, N, offsets)
        alive = t < length
        enters = tiles.kept(reset, t, rows, N, alive)
        last = alive & (tiles.time_at(length - 1 - t, length, reverse) == 0)
        for STAGE in tl.static_range(STAGES):
            if STAGE == 0:
                operand = tl.where(started, output + previous * H, h_0 + rows * H)
                operand_mask = enters
            else:
                operand = operands + rows * ((STAGES - 1) * H) + (STAGE - 1) * H
                operand_mask = alive
            for first_unit in range(0, H, BLOCK_H):
                units = first_unit + tl.arange(0, BLOCK_H)
                unit_mask = units < H
                products = tiles.gates_product(
                    operand, operand_mask,
                    tiles.stage_weight(weight, CELL.stages[STAGE].first_gate, H), first_unit, H,
                    CELL.stages[STAGE].gates, PRECISION, BLOCK_N, BLOCK_H, BLOCK_K,
                )  # fmt: skip
                bias_rows = tiles.load_rows(bias, units, unit_mask, H, 0, CELL.gates)
                gates_h = tiles.gates_of(products, bias, bias_rows, CELL, STAGE)
                tile = alive[:, None] & unit_mask[None, :]
                continued = (enters & started)[:, None] & unit_mask[None, :]
                begun = (enters & tiles.off(started))[:, None] & unit_mask[None, :]
                at_rows, at_index, at_units = rows[:, None], index[:, None], units[None, :]
                state = states.load_entering(carried, continued, h_0, c_0, begun, at_rows, at_units,
                                             H, CELL)  # fmt: skip
                results, values = FORWARD(
                    tiles.load_planes(gates_x, at_index, at_units, tile, H, CELL.gates), gates_h,
                    state, tiles.load_rows(bias, units, unit_mask, H, CELL.gates, CELL.parameters),
                    states.load_between(between, at_rows, at_units, tile, H, CELL, STAGE), STAGE,
                )  # fmt: skip
                if STAGE + 1 < STAGES:
                    place = states.place_of(at_rows, at_units, H, STAGES - 1, STAGE)
                    tl.store(operands + place, results[0], mask=tile)
                    states.store_between(between, values, at_rows, at_units, tile, H, CELL, STAGE)
                else:
                    states.store_carried(carried, results, at_rows, at_units, tile, H, CELL)
                    states.store_new(output, c_sequence, at_index, tile, h_n, c_n, at_rows,
                                     last[:, None] & unit_mask[None, :], results, at_units, H,
                                     CELL)  # fmt: skip
                if saved is not None:
                    tiles.store_saved(saved, values, at_index, at_units, tile, H, CELL, STAGE)
            if STAGE + 1 == STAGES:
                started = alive
                previous = index
            tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight, bias, h_0, c_0, output, c_sequence,
    saved, lengths, offsets, reset, carried, grad_gates_x, grad_gates_h, grad_h_0, grad_c_0, T, N,
    spans, reverse, SPAN: tl.constexpr, CELL: tl.constexpr, BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp. None stands for what is absent; the bias is for its parameters.

    Float32 `carried` holds gradients of states, [N, ..*H]. One iteration more than there are steps:
    the last only brings the gradients of the first state.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    STATES: tl.constexpr = CELL.states
    READS_NEW: tl.constexpr = CELL.reads_new_state
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    behind = rows < 0
    behind_index = rows
    flows = behind
    for s in range(0, steps + 1):
        t = tiles.time_at(s, steps, 1 - reverse)
        alive = tiles.within(t, length)
        inside = tl.minimum(tl.maximum(t, 0), steps - 1)
        index = tiles.rows_at(inside, rows, N, offsets)
        enters = tiles.kept(reset, inside, rows, N, alive)
        before = t - 1 + 2 * reverse
        follows = enters & tiles.within(before, length)
        begins = enters & tiles.off(follows)
        before_index = tiles.rows_at(tl.minimum(tl.maximum(before, 0), steps - 1), rows, N, offsets)
        for STAGE in tl.static_range(STAGES - 1, -1, -1):
            for first_unit in range(0, H, BLOCK_H):
                units = first_unit + tl.arange(0, BLOCK_H)
                unit_mask = units < H
                at_rows, at_index, at_units = rows[:, None], index[:, None], units[None, :]
                tile = alive[:, None] & unit_mask[None, :]
                # The product of the first stage is of the step that the backward comes from.
                grad_index = index if STAGE + 1 < STAGES else behind_index
                grad_mask = alive if STAGE + 1 < STAGES else flows
                passed = states.load_carried(carried, at_rows, at_units,
                                             grad_mask[:, None] & unit_mask[None, :], H,
                                             CELL)  # fmt: skip
                grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
                grad = tiles.stage_grads(grad_gates_x, grad_gates_h, grad_index, grad_mask, weight,
                                         units, unit_mask, H, grad, CELL, (STAGE + 1) % STAGES,
                                         PRECISION, BLOCK_K)  # fmt: skip
                grads = (grad,)
                if STAGE + 1 == STAGES:
                    new_tile = (alive & tiles.off(behind))[:, None] & unit_mask[None, :]
                    end_tile = (behind & tiles.off(alive))[:, None] & unit_mask[None, :]
                    grads = ()
                    for k in tl.static_range(STATES):
                        if k > 0:
                            grad = passed[k]
                        elif CELL.first_carried == 0:
                            grad += passed[k]
                        first = states.state_place(at_rows, at_units, H, k, CELL)
                        tl.store((grad_h_0 if k == 0 else grad_c_0) + first, grad, mask=end_tile)
                        grad = tiles.add_present(
                            grad, grad_h_n if k == 0 else grad_c_n, first, new_tile
                        )
                        place = states.state_place(at_index, at_units, H, k, CELL)
                        grad = tiles.add_present(grad, grad_output if k == 0 else grad_c_sequence,
                                                 place, tile)  # fmt: skip
                        grads = grads + (grad,)
                new_state = states.load_states(
                    output, c_sequence, at_index, at_units, tile, H, READS_NEW, CELL
                )
                old_state = states.load_old(
                    output, c_sequence, before_index[:, None],
                    follows[:, None] & unit_mask[None, :], h_0, c_0, at_rows,
                    begins[:, None] & unit_mask[None, :], at_units, H, CELL,
                )  # fmt: skip
                grad_x, beside, grad_state = BACKWARD(
                    tiles.load_planes(saved, at_index, at_units, tile, H, CELL.saved), old_state,
                    new_state,
                    tiles.load_rows(bias, units, unit_mask, H, CELL.gates, CELL.parameters), grads,
                    STAGE,
                )  # fmt: skip
                tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at_index, at_units,
                                  tile, H, CELL, STAGE, None)  # fmt: skip
                if STAGE + 1 < STAGES:
                    grad_state = states.add_carried(passed, grad_state, CELL)
                states.store_carried(carried, grad_state, at_rows, at_units, tile, H, CELL)
            if STAGE == 0:
                behind = alive
                behind_index = index
                flows = enters
            tl.debug_barrier()
