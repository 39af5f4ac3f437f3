"""Building blocks of the sequence kernels: planes of gates, recurrent products, rows in time.

A tile is [BLOCK_N, BLOCK_H]: rows of the batch by hidden units. Products accumulate in float32;
the operands stay in the storage dtype. All gates of a tile come from one wide product whose columns
hold the gates of a unit side by side, padded to a power of two in registers alone.
Kernels get H as `spans` of SPAN units, so that the compiler knows a divisor of every row's address.
"""

import triton
import triton.language as tl


@triton.jit
def load_planes(tensor, at, units, mask, H, COUNT: tl.constexpr):
    """The COUNT values of each unit that stand side by side in a row, in float32; () if none."""
    planes = ()
    for k in tl.static_range(COUNT):
        place = tensor + at * (COUNT * H) + units + k * H
        planes = planes + (tl.load(place, mask=mask, other=0.0).to(tl.float32),)
    return planes


@triton.jit
def load_either(first, first_mask, second, second_mask):
    """In float32 what `first` points to where its mask is on, and `second` where its own is."""
    x = tl.load(first, mask=first_mask, other=0.0).to(tl.float32)
    return x + tl.load(second, mask=second_mask, other=0.0).to(tl.float32)


@triton.jit
def store_saved(saved, values, at, units, mask, H, CELL: tl.constexpr, STAGE: tl.constexpr):
    """Store the saved values of a stage."""
    SAVED: tl.constexpr = CELL.saved
    PLACES: tl.constexpr = CELL.stages[STAGE].saved_at
    for k in tl.static_range(SAVED):
        if PLACES[k] >= 0:
            tl.store(saved + at * (SAVED * H) + units + k * H, values[PLACES[k]], mask=mask)


@triton.jit
def store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at, units, mask, H, CELL: tl.constexpr,
                STAGE: tl.constexpr, OWN: tl.constexpr):  # fmt: skip
    """Store gradients that a stage gives: those that its OWN products read, the others, or all."""
    GATES: tl.constexpr = CELL.gates
    COLUMNS: tl.constexpr = CELL.columns
    GRAD_AT: tl.constexpr = CELL.stages[STAGE].grad_at
    BESIDE_AT: tl.constexpr = CELL.stages[STAGE].beside_at
    for k in tl.static_range(GATES):
        if GRAD_AT[k] >= 0 and (OWN is None or CELL.stages[STAGE].own_gates[k] == OWN):
            place = grad_gates_x + at * (GATES * H) + units + k * H
            tl.store(place, grad_x[GRAD_AT[k]], mask=mask)
    if grad_gates_h is not None:
        for k in tl.static_range(COLUMNS):
            if BESIDE_AT[k] >= 0 and (OWN is None or CELL.stages[STAGE].own_columns[k] == OWN):
                place = grad_gates_h + at * (COLUMNS * H) + units + k * H
                tl.store(place, beside[BESIDE_AT[k]], mask=mask)


@triton.jit
def store_through(through, grad_x, beside, at, units, unit_mask, mask, H, CELL: tl.constexpr,
                  STAGE: tl.constexpr):  # fmt: skip
    """Store what flows through the products from the gates whose gradients a stage gives.

    `through` has all gates; where there is a mask, zeros are stored outside.
    """
    GATES: tl.constexpr = CELL.gates
    GRAD_AT: tl.constexpr = CELL.stages[STAGE].grad_at
    BESIDE_AT: tl.constexpr = CELL.stages[STAGE].beside_at
    for k in tl.static_range(GATES):
        if GRAD_AT[k] >= 0:
            if CELL.column_of[k] < 0:
                column = grad_x[GRAD_AT[k]]
            else:
                column = beside[BESIDE_AT[CELL.column_of[k]]]
            if mask is not None:
                column = tl.where(mask, column, 0.0)
            tl.store(through + at * (GATES * H) + units + k * H, column, mask=unit_mask)


@triton.jit
def add_present(x, tensor, place, mask):
    """What is given plus, where there is a tensor, what that holds at `place`."""
    if tensor is None:
        return x
    else:
        return x + tl.load(tensor + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_rows(bias, units, unit_mask, H, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Biases, or the parameters that follow them, from number FIRST on; () without a bias."""
    rows = ()
    if bias is not None:
        for k in tl.static_range(FIRST, FIRST + COUNT):
            row = tl.load(bias + k * H + units, mask=unit_mask, other=0.0).to(tl.float32)
            rows = rows + (row,)
    return rows


@triton.jit
def gates_of(products, bias, rows, CELL: tl.constexpr, STAGE: tl.constexpr):
    """Products of a stage and, with a bias, its rows, by the number of the gate."""
    FIRST: tl.constexpr = CELL.stages[STAGE].first_gate
    COUNT: tl.constexpr = CELL.stages[STAGE].gates
    sums = ((),) * FIRST
    for k in tl.static_range(COUNT):
        sums = sums + (products[k] if bias is None else products[k] + rows[FIRST + k],)
    return sums + ((),) * (CELL.gates - FIRST - COUNT)


@triton.jit
def stage_weight(weight, gate, H):
    """The rows of the weights from a gate on."""
    return weight + tl.cast(H, tl.int64) * gate * H


@triton.jit
def split_gates(wide, GATES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr):
    """[BLOCK_N, BLOCK_H * WIDTH], gates innermost, as GATES blocks [BLOCK_N, BLOCK_H]."""
    if GATES == 1:
        gates = (wide,)
    elif GATES == 2:
        gates = tl.split(tl.reshape(wide, (BLOCK_N, BLOCK_H, 2)))
    else:
        even, odd = tl.split(tl.reshape(wide, (BLOCK_N, BLOCK_H, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        gates = (first, second, third)
        if GATES == 4:
            gates = gates + (fourth,)
    return gates


@triton.jit
def wide_columns(first_unit, H, GATES: tl.constexpr, BLOCK_H: tl.constexpr):
    """Row of the weights for each column of a wide product, and whether it exists."""
    WIDTH: tl.constexpr = 4 if GATES > 2 else GATES
    columns = tl.arange(0, BLOCK_H * WIDTH)
    gate = columns % WIDTH
    unit = first_unit + columns // WIDTH
    return gate * H + unit, (gate < GATES) & (unit < H)


@triton.jit
def gates_product(operand, operand_mask, weight, first_unit, H, GATES: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
                  BLOCK_K: tl.constexpr):  # fmt: skip
    """The product h W^T for the units of one tile: a tuple of GATES blocks.

    operand: pointers to the first unit of each row's h, [BLOCK_N]; weight [>= GATES*H, H].
    """
    WIDTH: tl.constexpr = 4 if GATES > 2 else GATES
    weight_rows, column_mask = wide_columns(first_unit, H, GATES, BLOCK_H)
    total = tl.zeros((BLOCK_N, BLOCK_H * WIDTH), tl.float32)
    for start in range(0, H, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(operand[:, None] + k[None, :],
                    mask=operand_mask[:, None] & (k < H)[None, :], other=0.0)  # fmt: skip
        b = tl.load(weight + weight_rows[None, :].to(tl.int64) * H + k[:, None],
                    mask=column_mask[None, :] & (k < H)[:, None], other=0.0)  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return split_gates(total, GATES, BLOCK_N, BLOCK_H)


@triton.jit
def grads_product(operand, operand_mask, depth, weight, units, unit_mask, H, total,
                  PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Add grad_gates W to total [BLOCK_N, BLOCK_H].

    operand: pointers to each row's `depth` gate gradients, [BLOCK_N]; weight [depth, H].
    """
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(operand[:, None] + k[None, :],
                    mask=operand_mask[:, None] & (k < depth)[None, :], other=0.0)  # fmt: skip
        b = tl.load(weight + k[:, None].to(tl.int64) * H + units[None, :],
                    mask=unit_mask[None, :] & (k < depth)[:, None], other=0.0)  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def run_operand(grad_gates_x, grad_gates_h, index, H, CELL: tl.constexpr, STAGE: tl.constexpr,
                RUN: tl.constexpr):  # fmt: skip
    """Pointers to the gate gradients of each row that a product through a stage reads."""
    COLUMN: tl.constexpr = CELL.stages[STAGE].runs[RUN].column
    if CELL.stages[STAGE].runs[RUN].separate:
        return grad_gates_h + index * (CELL.columns * H) + COLUMN * H
    else:
        return grad_gates_x + index * (CELL.gates * H) + COLUMN * H


@triton.jit
def stage_grads(grad_gates_x, grad_gates_h, index, row_mask, weight, units, unit_mask, H, total,
                CELL: tl.constexpr, STAGE: tl.constexpr, PRECISION: tl.constexpr,
                BLOCK_K: tl.constexpr):  # fmt: skip
    """Add to total what flows back through the product of a stage, from the rows at `index`."""
    for i in tl.static_range(len(CELL.stages[STAGE].runs)):
        total = grads_product(
            run_operand(grad_gates_x, grad_gates_h, index, H, CELL, STAGE, i), row_mask,
            CELL.stages[STAGE].runs[i].gates * H,
            stage_weight(weight, CELL.stages[STAGE].runs[i].row, H), units, unit_mask, H, total,
            PRECISION, BLOCK_K,
        )  # fmt: skip
    return total


@triton.jit
def time_at(s, steps, reverse):
    """The time of the s-th processed step: s, or with `reverse` steps - 1 - s."""
    return s + reverse * (steps - 1 - 2 * s)


@triton.jit
def rows_at(t, rows, N, offsets):
    """Index of each row's step t in the leading dimensions of the results, int64.

    Padded layout: t * N + row. Packed layout: offsets[t] + row.
    """
    if offsets is None:
        return tl.cast(t, tl.int64) * N + rows
    else:
        return tl.load(offsets + t) + rows


@triton.jit
def row_lengths(lengths, rows, N, T):
    """Steps of each row, at most T and none beyond the batch: [BLOCK_N] int32."""
    if lengths is None:
        return tl.where(rows < N, T, 0)
    else:
        length = tl.load(lengths + rows, mask=rows < N, other=0)
        return tl.minimum(length, T).to(tl.int32)


@triton.jit
def within(t, length):
    """Where 0 <= t < length, for a scalar t."""
    # Not (t >= 0) & (t < length): the interpreter makes integers of a scalar condition.
    return t < tl.where(t >= 0, length, t)


@triton.jit
def off(mask):
    """The complement of a mask; `~` is not one in the interpreter."""
    return mask == 0


@triton.jit
def kept(reset, t, rows, N, mask):
    """Where the state enters step t: `mask` without the rows that are reset there."""
    if reset is None:
        return mask
    else:
        return mask & (tl.load(reset + tl.cast(t, tl.int64) * N + rows, mask=mask, other=0) == 0)


@triton.jit
def row_limit(lengths, row, t, limit):
    """`limit` if step t is within the row, else 0: a count of units, for one row."""
    if lengths is None:
        return limit
    else:
        return tl.where(t < tl.load(lengths + row), limit, 0)


@triton.jit
def entering_limit(reset, row, t, N, limit):
    """`limit`, but 0 if the row's state is reset at step t; a negative t is no step."""
    if reset is None:
        return limit
    else:
        flag = tl.load(reset + tl.cast(tl.maximum(t, 0), tl.int64) * N + row)
        return tl.where(flag == 0, limit, tl.where(t < 0, limit, 0))
