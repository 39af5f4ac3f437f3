"""Sequence kernels, one group of programs per batch slice: any cell.

Computes the whole sequence of BLOCK_N rows, forward or backward, in one launch.
Program p is number p % U of group p // U, where U = ceil(H / BLOCK_H): a group owns BLOCK_N rows, a
program one panel of BLOCK_H units, for all steps.
On chip: what is carried between steps, in float32 registers; the panel's weights in shared memory
where CHUNKS is not zero, otherwise they are read from L2 once a step.
Exchange: the results themselves. A program writes its panel of `output` (backward: of the gate
gradients), every step in a place of its own, and the group's counter says how many panels are
written, so nothing is overwritten while another program still reads it. A stage that another
follows writes what the next product reads to `operands`, again one step later: by then every member
has announced its new h, and so has read the old values.
Synchronises on one monotonic counter per group, once a stage: add with release after the stores,
poll with acquire before the loads; a group of one program (ALONE) needs its own barrier only. The
launch is cooperative: a grid that cannot be co-resident is an error, not a hang.

Limitations:
- the grid has at most one program per multiprocessor: plan.py refuses what exceeds it;
- every program of a group polls the same word;
- with SPLIT > 1 each warp multiplies its own share of the depth, and BLOCK_K is that of one warp:
  SPLIT must be num_warps, or the compiler repeats the product; with SPLIT == 1 warps share a tile;
- arithmetic is float32, storage float32, float16 or bfloat16.
"""

import triton
import triton.language as tl

from . import products, states, tiles
from .exchange import announce, wait_for


@triton.jit
def keep(before, values, CELL: tl.constexpr, STAGE: tl.constexpr):
    """The saved values that later stages read: of the stages before, and of this one."""
    SAVED: tl.constexpr = CELL.saved
    SAVED_AT: tl.constexpr = CELL.stages[STAGE].saved_at
    found = ()
    for k in tl.static_range(SAVED):
        if CELL.kept_at[k] < 0:
            found = found + ((),)
        else:
            found = found + (before[k] if SAVED_AT[k] < 0 else values[SAVED_AT[k]],)
    return found


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def forward_kernel(
    gates_x, weight, bias, h_0, c_0, lengths, offsets, reset, counters, operands, output, h_n, c_n,
    c_sequence, saved, T, N, spans, reverse, SPAN: tl.constexpr, CELL: tl.constexpr,
    FORWARD: tl.constexpr, PRECISION: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
    SPLIT: tl.constexpr, ALONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group.

    `operands` [N, (stages - 1) * H] holds what the products of later stages read. CHUNKS has, for
    every stage, the number of chunks of its weights that stay in shared memory.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    SAVED: tl.constexpr = CELL.saved
    CARRIES: tl.constexpr = CELL.carries
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    first_unit = (tl.program_id(0) % members) * BLOCK_H
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = first_unit + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    at_rows, at_units = rows[:, None], units[None, :]
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    biases = tiles.load_vectors(bias, units, unit_mask, H, 0, CELL.gates)
    parameters = tiles.load_vectors(bias, units, unit_mask, H, CELL.gates, CELL.parameters)
    resident = ()
    for STAGE in tl.static_range(STAGES):
        columns = products.wide_columns(first_unit, H, CELL.stages[STAGE].gates, BLOCK_H)
        own_weight = products.stage_weight(weight, CELL.stages[STAGE].first_gate, H)
        resident = resident + (
            products.resident_weight(own_weight, *columns, H, H, True, CHUNKS[STAGE], SPLIT,
                                     BLOCK_K),
        )  # fmt: skip
    started = rows < 0
    previous = rows
    carry = states.load_states(h_0, c_0, at_rows, at_units, tiles.outer(rows < N, unit_mask), H,
                               CARRIES, CELL)  # fmt: skip
    for s in range(0, steps):
        index, alive, enters, last = tiles.forward_rows(
            s, steps, reverse, rows, N, length, offsets, reset
        )
        at_index = index[:, None]
        tile = tiles.outer(alive, unit_mask)
        last_tile = tiles.outer(last, unit_mask)
        # Loaded before the wait: it does not depend on the other programs.
        inputs = tiles.load_planes(gates_x, at_index, at_units, tile, H, CELL.gates)
        before = ((),) * SAVED
        for STAGE in tl.static_range(STAGES):
            wait_for(counters, group, (STAGES * s + STAGE) * members, ALONE, "persistent forward")
            if STAGE == 0:
                left = tl.where(started, output + previous * H, h_0 + rows * H)
                left_mask = enters
            else:
                left = operands + rows * ((STAGES - 1) * H) + (STAGE - 1) * H
                left_mask = alive
            gates = products.gates_product(
                left, left_mask,
                products.stage_weight(weight, CELL.stages[STAGE].first_gate, H), first_unit, H,
                CELL.stages[STAGE].gates, PRECISION, BLOCK_N, BLOCK_H, BLOCK_K, resident[STAGE],
                CHUNKS[STAGE], AHEAD, SPLIT,
            )  # fmt: skip
            gates_h = tiles.gates_of(gates, bias, biases, CELL, STAGE)
            state = states.where_carried(enters[:, None], carry, None, CELL)
            results, values = FORWARD(inputs, gates_h, state, parameters, before, STAGE)
            # What no other program reads is stored after the announcement.
            if STAGE + 1 < STAGES:
                place = states.place_of(at_rows, at_units, H, STAGES - 1, STAGE)
                tl.store(operands + place, results[0], mask=tile)
                announce(counters, group, ALONE)
                before = keep(before, values, CELL, STAGE)
            else:
                tl.store(states.state_at(output, None, at_index, at_units, H, 0, CELL), results[0],
                         mask=tile)  # fmt: skip
                announce(counters, group, ALONE)
                carry = states.where_carried(alive[:, None], results, carry, CELL)
                states.store_states(None, c_sequence, results, at_index, at_units, tile, H, CELL)
                states.store_states(h_n, c_n, results, at_rows, at_units, last_tile, H, CELL)
            tiles.store_saved(saved, values, at_index, at_units, tile, H, CELL, STAGE)
        started = alive
        previous = index


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight, bias, h_0, c_0, output, c_sequence,
    saved, lengths, offsets, reset, counters, grad_gates_x, grad_gates_h, grad_h_0, grad_c_0, T, N,
    spans, reverse, SPAN: tl.constexpr, CELL: tl.constexpr, BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr,
    ALONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group.

    The bias is for the cell's parameters. CHUNKS has, for every product, the number of
    chunks of its weights that stay in shared memory. There is one iteration more than steps: the
    last only computes the gradients of the first state.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    STATES: tl.constexpr = CELL.states
    FIRST: tl.constexpr = CELL.first_carried
    CARRIES: tl.constexpr = CELL.carries
    ALL: tl.constexpr = (True,) * STATES
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = (tl.program_id(0) % members) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    at_rows, at_units = rows[:, None], units[None, :]
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    parameters = tiles.load_vectors(bias, units, unit_mask, H, CELL.gates, CELL.parameters)
    resident = ()
    for STAGE in tl.static_range(STAGES):
        for i in tl.static_range(len(CELL.stages[STAGE].runs)):
            resident = resident + (
                products.resident_weight(
                    products.stage_weight(weight, CELL.stages[STAGE].runs[i].row, H), units,
                    unit_mask, CELL.stages[STAGE].runs[i].gates * H, H, False,
                    CHUNKS[CELL.stages[STAGE].first_run + i], SPLIT, BLOCK_K,
                ),
            )  # fmt: skip
    behind = rows < 0
    behind_index = rows
    flows = behind
    zeros = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    carry = ((),) * FIRST + (zeros,) * (STATES - FIRST)
    for s in range(0, steps + 1):
        index, before, alive, enters, follows = tiles.backward_rows(
            s, steps, reverse, rows, N, length, offsets, reset
        )
        at_index = index[:, None]
        tile = tiles.outer(alive, unit_mask)
        new_tile = tiles.outer(alive & tiles.off(behind), unit_mask)
        end_tile = tiles.outer(behind & tiles.off(alive), unit_mask)
        # Everything but the products is loaded before the wait.
        arriving = states.add_states((zeros,) * STATES, grad_h_n, grad_c_n, at_rows, at_units,
                                     new_tile, H, CELL)  # fmt: skip
        arriving = states.add_states(arriving, grad_output, grad_c_sequence, at_index, at_units,
                                     tile, H, CELL)  # fmt: skip
        values, old_state, new_state = states.load_for_backward(
            output, c_sequence, saved, at_index, tile, h_0, c_0, before[:, None],
            tiles.outer(follows, unit_mask), at_rows,
            tiles.outer(enters & tiles.off(follows), unit_mask), at_units, H, CELL,
        )  # fmt: skip
        passed = None
        for STAGE in tl.static_range(STAGES - 1, -1, -1):
            wait_for(counters, group, (STAGES * s + STAGES - 1 - STAGE) * members, ALONE,
                     "persistent backward")  # fmt: skip
            # A step begins with the product of its first stage, which the step behind it read.
            grad_index = index if STAGE + 1 < STAGES else behind_index
            grad_mask = alive if STAGE + 1 < STAGES else flows
            grad = products.stage_grads(
                grad_gates_x, grad_gates_h, grad_index, grad_mask, weight, units, unit_mask, H,
                CELL, (STAGE + 1) % STAGES, PRECISION, BLOCK_N, BLOCK_H, BLOCK_K, resident, CHUNKS,
                AHEAD, SPLIT,
            )  # fmt: skip
            grads = (grad,)
            if STAGE + 1 == STAGES:
                carry = states.where_carried(flows[:, None], carry, None, CELL)
                grads = states.flowing(grad, carry, CELL)
                states.store_states(grad_h_0, grad_c_0, grads, at_rows, at_units, end_tile, H, CELL)
                grads = states.add(grads, arriving, ALL)
            grad_x, beside, grad_state = BACKWARD(
                values, old_state, new_state, parameters, grads, STAGE
            )
            tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at_index, at_units, tile,
                              H, CELL, STAGE, True)  # fmt: skip
            announce(counters, group, ALONE)
            # The next product does not read the others.
            tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at_index, at_units, tile,
                              H, CELL, STAGE, False)  # fmt: skip
            passed = states.add(passed, grad_state, CARRIES)
        carry = passed
        behind = alive
        behind_index = index
        flows = enters
