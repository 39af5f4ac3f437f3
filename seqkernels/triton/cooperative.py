"""Sequence kernels, one group of programs per slice of the batch: any cell.

Computes the whole sequence of BLOCK_N rows, forward or backward, in one launch.
Program p is number p % U of group p // U, where U = ceil(H / BLOCK_H): a group owns BLOCK_N rows, a
program BLOCK_H units of them with all their gates, for all steps.
On chip: what is carried between steps in float32 registers; the program's part of the weights in
shared memory where TILES says that it fits, otherwise it is read from L2 once a step.
Exchange: the results themselves. A step writes its part of `output` (backward: of the gate
gradients) to its own place, and the group's counter says how many parts are there, so nothing is
overwritten while a neighbour still reads it. A stage that another follows writes what the next
product reads to `operands`, again one step later: by then every member has announced its new h, and
so has read the old values.
Synchronises on one monotonic counter per group, once a stage: add with release after the stores,
poll with acquire before the loads; a group of one program (ALONE) needs its own barrier only. The
launch is cooperative: a grid that cannot be co-resident is an error, not a hang.

Limitations:
- the grid has at most one program per multiprocessor: plan.py refuses what exceeds it;
- every program of a group polls the same word;
- with SPLIT > 1 each warp multiplies its own part of the depth, and BLOCK_K counts for one warp:
  SPLIT must be num_warps, or the compiler repeats the product; with SPLIT == 1 warps share a tile;
- arithmetic is float32, storage float32, float16 or bfloat16.
"""

import triton
import triton.language as tl

from . import states, tiles
from .exchange import announce, product, resident_weight, wait_for


@triton.jit
def wide_gates(operand, operand_mask, parts, weight, columns, column_mask, H,
               GATES: tl.constexpr, TILES: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr,
               PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
               BLOCK_K: tl.constexpr):  # fmt: skip
    """tiles.gates_product with its depth split over warps."""
    WIDTH: tl.constexpr = 4 if GATES > 2 else GATES
    wide = tl.zeros((SPLIT, BLOCK_N, BLOCK_H * WIDTH), tl.float32)
    wide = product(operand, operand_mask, parts, weight, columns, column_mask, H, H, 1, wide, TILES,
                   AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
    return tiles.split_gates(tl.sum(wide, 0), GATES, BLOCK_N, BLOCK_H)


@triton.jit
def split_grads(grad_gates_x, grad_gates_h, index, row_mask, parts, weight, units, unit_mask, H,
                total, CELL: tl.constexpr, STAGE: tl.constexpr, TILES: tl.constexpr,
                AHEAD: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
                BLOCK_K: tl.constexpr):  # fmt: skip
    """tiles.stage_grads with its depth split over warps: total is [SPLIT, BLOCK_N, BLOCK_H]."""
    FIRST: tl.constexpr = CELL.stages[STAGE].first_run
    for i in tl.static_range(len(CELL.stages[STAGE].runs)):
        total = product(
            tiles.run_operand(grad_gates_x, grad_gates_h, index, H, CELL, STAGE, i), row_mask,
            parts[FIRST + i], tiles.stage_weight(weight, CELL.stages[STAGE].runs[i].row, H), units,
            unit_mask, 1, CELL.stages[STAGE].runs[i].gates * H, H, total, TILES[FIRST + i], AHEAD,
            SPLIT, PRECISION, BLOCK_K,
        )  # fmt: skip
    return total


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
    FORWARD: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr, AHEAD: tl.constexpr,
    SPLIT: tl.constexpr, ALONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group.

    `operands` [N, (stages - 1) * H] holds what the products of later stages read. TILES has the
    parts of every stage's weights that stay in shared memory.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    STATES: tl.constexpr = CELL.states
    SAVED: tl.constexpr = CELL.saved
    FIRST: tl.constexpr = CELL.first_carried
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    first_unit = (tl.program_id(0) % members) * BLOCK_H
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = first_unit + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    at_rows, at_units = rows[:, None], units[None, :]
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    bias_rows = tiles.load_rows(bias, units, unit_mask, H, 0, CELL.gates)
    parameters = tiles.load_rows(bias, units, unit_mask, H, CELL.gates, CELL.parameters)
    columns = ()
    parts = ()
    for STAGE in tl.static_range(STAGES):
        columns = columns + (tiles.wide_columns(first_unit, H, CELL.stages[STAGE].gates, BLOCK_H),)
        parts = parts + (
            resident_weight(tiles.stage_weight(weight, CELL.stages[STAGE].first_gate, H),
                            columns[STAGE][0], columns[STAGE][1], H, H, 1, TILES[STAGE], SPLIT,
                            BLOCK_K),
        )  # fmt: skip
    started = rows < 0
    previous = rows
    in_batch = (rows < N)[:, None] & unit_mask[None, :]
    carry = ()
    for k in tl.static_range(FIRST, STATES):
        first = (h_0 if k == 0 else c_0) + states.state_place(at_rows, at_units, H, k, CELL)
        carry = carry + (tl.load(first, mask=in_batch, other=0.0).to(tl.float32),)
    for s in range(0, steps):
        t = tiles.time_at(s, steps, reverse)
        index = tiles.rows_at(t, rows, N, offsets)
        alive = t < length
        enters = tiles.kept(reset, t, rows, N, alive)
        last = alive & (tiles.time_at(length - 1 - t, length, reverse) == 0)
        at_index = index[:, None]
        tile = alive[:, None] & unit_mask[None, :]
        last_tile = last[:, None] & unit_mask[None, :]
        # Loaded before the wait: it does not depend on the other programs.
        inputs = tiles.load_planes(gates_x, at_index, at_units, tile, H, CELL.gates)
        before = ((),) * SAVED
        for STAGE in tl.static_range(STAGES):
            wait_for(counters, group, (STAGES * s + STAGE) * members, ALONE, "cooperative forward")
            if STAGE == 0:
                operand = tl.where(started, output + previous * H, h_0 + rows * H)
                operand_mask = enters
            else:
                operand = operands + rows * ((STAGES - 1) * H) + (STAGE - 1) * H
                operand_mask = alive
            own_weight = tiles.stage_weight(weight, CELL.stages[STAGE].first_gate, H)
            if SPLIT == 1:
                products = tiles.gates_product(
                    operand, operand_mask, own_weight, first_unit, H, CELL.stages[STAGE].gates,
                    PRECISION, BLOCK_N, BLOCK_H, BLOCK_K,
                )  # fmt: skip
            else:
                products = wide_gates(operand, operand_mask, parts[STAGE], own_weight,
                                      columns[STAGE][0], columns[STAGE][1], H,
                                      CELL.stages[STAGE].gates, TILES[STAGE], AHEAD, SPLIT,
                                      PRECISION, BLOCK_N, BLOCK_H, BLOCK_K)  # fmt: skip
            gates_h = tiles.gates_of(products, bias, bias_rows, CELL, STAGE)
            state = ((),) * FIRST
            for k in tl.static_range(FIRST, STATES):
                state = state + (tl.where(enters[:, None], carry[k - FIRST], 0.0),)
            results, values = FORWARD(inputs, gates_h, state, parameters, before, STAGE)
            # What nobody waits for is stored after the announcement.
            if STAGE + 1 < STAGES:
                place = states.place_of(at_rows, at_units, H, STAGES - 1, STAGE)
                tl.store(operands + place, results[0], mask=tile)
                announce(counters, group, ALONE)
                before = keep(before, values, CELL, STAGE)
            else:
                tl.store(output + states.state_place(at_index, at_units, H, 0, CELL), results[0],
                         mask=tile)  # fmt: skip
                announce(counters, group, ALONE)
                entered = carry
                carry = ()
                for k in tl.static_range(FIRST, STATES):
                    carry = carry + (tl.where(alive[:, None], results[k], entered[k - FIRST]),)
                states.store_new(None, c_sequence, at_index, tile, h_n, c_n, at_rows, last_tile,
                                 results, at_units, H, CELL)  # fmt: skip
            if saved is not None:
                tiles.store_saved(saved, values, at_index, at_units, tile, H, CELL, STAGE)
        started = alive
        previous = index


@triton.jit(do_not_specialize=["T", "N", "spans", "reverse"])
def backward_kernel(
    grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight, bias, h_0, c_0, output, c_sequence,
    saved, lengths, offsets, reset, counters, grad_gates_x, grad_gates_h, grad_h_0, grad_c_0, T, N,
    spans, reverse, SPAN: tl.constexpr, CELL: tl.constexpr, BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr, TILES: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr,
    ALONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shapes as in csrc/ops.cpp; `counters` is int32, zero, one per group.

    The bias is for the cell's parameters. TILES has the parts of every product's weights that stay
    in shared memory. One iteration more than there are steps: the last only brings the gradients of
    the first state.
    """
    H = spans * SPAN
    STAGES: tl.constexpr = len(CELL.stages)
    STATES: tl.constexpr = CELL.states
    READS_NEW: tl.constexpr = CELL.reads_new_state
    FIRST: tl.constexpr = CELL.first_carried
    members = tl.cdiv(H, BLOCK_H)
    group = tl.program_id(0) // members
    rows = group * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    units = (tl.program_id(0) % members) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_mask = units < H
    at_rows, at_units = rows[:, None], units[None, :]
    length = tiles.row_lengths(lengths, rows, N, T)
    steps = tl.max(length, 0)
    parameters = tiles.load_rows(bias, units, unit_mask, H, CELL.gates, CELL.parameters)
    parts = ()
    for STAGE in tl.static_range(STAGES):
        for i in tl.static_range(len(CELL.stages[STAGE].runs)):
            own_weight = tiles.stage_weight(weight, CELL.stages[STAGE].runs[i].row, H)
            parts = parts + (
                resident_weight(own_weight, units, unit_mask, 1,
                                CELL.stages[STAGE].runs[i].gates * H, H,
                                TILES[CELL.stages[STAGE].first_run + i], SPLIT, BLOCK_K),
            )  # fmt: skip
    behind = rows < 0
    behind_index = rows
    flows = behind
    carry = (tl.zeros((BLOCK_N, BLOCK_H), tl.float32),) * (STATES - FIRST)
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
        at_index = index[:, None]
        tile = alive[:, None] & unit_mask[None, :]
        new_tile = (alive & tiles.off(behind))[:, None] & unit_mask[None, :]
        end_tile = (behind & tiles.off(alive))[:, None] & unit_mask[None, :]
        # Everything but the products is loaded before the wait.
        arriving = ()
        for k in tl.static_range(STATES):
            arrives = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            arrives = tiles.add_present(arrives, grad_h_n if k == 0 else grad_c_n,
                                        states.state_place(at_rows, at_units, H, k, CELL),
                                        new_tile)  # fmt: skip
            arrives = tiles.add_present(arrives, grad_output if k == 0 else grad_c_sequence,
                                        states.state_place(at_index, at_units, H, k, CELL),
                                        tile)  # fmt: skip
            arriving = arriving + (arrives,)
        new_state = states.load_states(
            output, c_sequence, at_index, at_units, tile, H, READS_NEW, CELL
        )
        old_state = states.load_old(
            output, c_sequence, before_index[:, None], follows[:, None] & unit_mask[None, :], h_0,
            c_0, at_rows, begins[:, None] & unit_mask[None, :], at_units, H, CELL,
        )  # fmt: skip
        values = tiles.load_planes(saved, at_index, at_units, tile, H, CELL.saved)
        passed = None
        for STAGE in tl.static_range(STAGES - 1, -1, -1):
            wait_for(counters, group, (STAGES * s + STAGES - 1 - STAGE) * members, ALONE,
                     "cooperative backward")  # fmt: skip
            # A step begins with the product of its first stage, which the step behind it read.
            grad_index = index if STAGE + 1 < STAGES else behind_index
            grad_mask = alive if STAGE + 1 < STAGES else flows
            if SPLIT == 1:
                grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
                grad = tiles.stage_grads(grad_gates_x, grad_gates_h, grad_index, grad_mask, weight,
                                         units, unit_mask, H, grad, CELL, (STAGE + 1) % STAGES,
                                         PRECISION, BLOCK_K)  # fmt: skip
            else:
                total = tl.zeros((SPLIT, BLOCK_N, BLOCK_H), tl.float32)
                total = split_grads(grad_gates_x, grad_gates_h, grad_index, grad_mask, parts,
                                    weight, units, unit_mask, H, total, CELL, (STAGE + 1) % STAGES,
                                    TILES, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
                grad = tl.sum(total, 0)
            grads = (grad,)
            if STAGE + 1 == STAGES:
                grads = ()
                for k in tl.static_range(STATES):
                    if k >= FIRST:
                        flowing = tl.where(flows[:, None], carry[k - FIRST], 0.0)
                        grad = grad + flowing if k == 0 else flowing
                    tl.store((grad_h_0 if k == 0 else grad_c_0)
                             + states.state_place(at_rows, at_units, H, k, CELL), grad,
                             mask=end_tile)  # fmt: skip
                    grads = grads + (grad + arriving[k],)
            grad_x, beside, grad_state = BACKWARD(
                values, old_state, new_state, parameters, grads, STAGE
            )
            tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at_index, at_units, tile,
                              H, CELL, STAGE, True)  # fmt: skip
            announce(counters, group, ALONE)
            # The next product does not read the others.
            tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at_index, at_units, tile,
                              H, CELL, STAGE, False)  # fmt: skip
            passed = grad_state if passed is None else states.add_carried(passed, grad_state, CELL)
        carry = ()
        for k in tl.static_range(FIRST, STATES):
            carry = carry + (passed[k],)
        behind = alive
        behind_index = index
        flows = enters
