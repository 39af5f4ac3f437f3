"""Sequence kernels, one program per batch slice: the recurrence of any cell.

Computes the whole sequence of BLOCK_N rows, forward or backward, panel of units by panel.
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

from . import products, states, tiles


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
    CARRIES: tl.constexpr = CELL.carries
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    started = rows < 0
    previous = rows
    for s in range(0, steps):
        index, alive, enters, last = tiles.forward_rows(
            s, steps, reverse, rows, N, length, offsets, reset
        )
        at_rows, at_index = rows[:, None], index[:, None]
        for STAGE in tl.static_range(STAGES):
            if STAGE == 0:
                left = tl.where(started, output + previous * H, h_0 + rows * H)
                left_mask = enters
            else:
                left = operands + rows * ((STAGES - 1) * H) + (STAGE - 1) * H
                left_mask = alive
            for first_unit in range(0, H, BLOCK_H):
                units = first_unit + tl.arange(0, BLOCK_H)
                unit_mask = units < H
                gates = products.gates_product(
                    left, left_mask,
                    products.stage_weight(weight, CELL.stages[STAGE].first_gate, H), first_unit, H,
                    CELL.stages[STAGE].gates, PRECISION, BLOCK_N, BLOCK_H, BLOCK_K,
                )  # fmt: skip
                biases = tiles.load_vectors(bias, units, unit_mask, H, 0, CELL.gates)
                gates_h = tiles.gates_of(gates, bias, biases, CELL, STAGE)
                at_units, tile = units[None, :], tiles.outer(alive, unit_mask)
                # What enters is carried, or the first state, or zero.
                continued = tiles.outer(enters & started, unit_mask)
                begun = tiles.outer(enters & tiles.off(started), unit_mask)
                state = states.add(
                    states.load_carried(carried, at_rows, at_units, continued, H, CELL),
                    states.load_states(h_0, c_0, at_rows, at_units, begun, H, CARRIES, CELL),
                    CARRIES,
                )
                inputs = tiles.load_planes(gates_x, at_index, at_units, tile, H, CELL.gates)
                parameters = tiles.load_vectors(bias, units, unit_mask, H, CELL.gates,
                                                CELL.parameters)  # fmt: skip
                before = states.load_between(between, at_rows, at_units, tile, H, CELL, STAGE)
                results, values = FORWARD(inputs, gates_h, state, parameters, before, STAGE)
                states.store_stage(
                    results, values, operands, between, carried, output, c_sequence, h_n, c_n,
                    saved, at_index, tile, at_rows, tiles.outer(last, unit_mask), at_units, H, CELL,
                    STAGE,
                )  # fmt: skip
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

    Float32 `carried` holds gradients of states, [N, ..*H]. There is one iteration more than
    steps: the last only computes the gradients of the first state.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    CARRIES: tl.constexpr = CELL.carries
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    behind = rows < 0
    behind_index = rows
    flows = behind
    for s in range(0, steps + 1):
        index, before, alive, enters, follows = tiles.backward_rows(
            s, steps, reverse, rows, N, length, offsets, reset
        )
        at_rows, at_index = rows[:, None], index[:, None]
        for STAGE in tl.static_range(STAGES - 1, -1, -1):
            for first_unit in range(0, H, BLOCK_H):
                units = first_unit + tl.arange(0, BLOCK_H)
                unit_mask = units < H
                at_units, tile = units[None, :], tiles.outer(alive, unit_mask)
                # The product of the first stage is of the step that the backward comes from.
                grad_index = index if STAGE + 1 < STAGES else behind_index
                grad_mask = alive if STAGE + 1 < STAGES else flows
                passed = states.load_carried(carried, at_rows, at_units,
                                             tiles.outer(grad_mask, unit_mask), H,
                                             CELL)  # fmt: skip
                grad = products.stage_grads(
                    grad_gates_x, grad_gates_h, grad_index, grad_mask, weight, units, unit_mask, H,
                    CELL, (STAGE + 1) % STAGES, PRECISION, BLOCK_N, BLOCK_H, BLOCK_K,
                )  # fmt: skip
                grads = (grad,)
                if STAGE + 1 == STAGES:
                    new_tile = tiles.outer(alive & tiles.off(behind), unit_mask)
                    end_tile = tiles.outer(behind & tiles.off(alive), unit_mask)
                    grads = states.flowing(grad, passed, CELL)
                    states.store_states(grad_h_0, grad_c_0, grads, at_rows, at_units, end_tile, H,
                                        CELL)  # fmt: skip
                    grads = states.add_states(grads, grad_h_n, grad_c_n, at_rows, at_units,
                                              new_tile, H, CELL)  # fmt: skip
                    grads = states.add_states(grads, grad_output, grad_c_sequence, at_index,
                                              at_units, tile, H, CELL)  # fmt: skip
                values, old_state, new_state = states.load_for_backward(
                    output, c_sequence, saved, at_index, tile, h_0, c_0, before[:, None],
                    tiles.outer(follows, unit_mask), at_rows,
                    tiles.outer(enters & tiles.off(follows), unit_mask), at_units, H, CELL,
                )  # fmt: skip
                parameters = tiles.load_vectors(bias, units, unit_mask, H, CELL.gates,
                                                CELL.parameters)  # fmt: skip
                grad_x, beside, grad_state = BACKWARD(
                    values, old_state, new_state, parameters, grads, STAGE
                )
                tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at_index, at_units,
                                  tile, H, CELL, STAGE, None)  # fmt: skip
                if STAGE + 1 < STAGES:
                    grad_state = states.add(passed, grad_state, CARRIES)
                states.store_carried(carried, grad_state, at_rows, at_units, tile, H, CELL)
            if STAGE == 0:
                behind = alive
                behind_index = index
                flows = enters
            tl.debug_barrier()
