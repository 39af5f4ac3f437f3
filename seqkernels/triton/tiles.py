"""Building blocks of the sequence kernels: planes of gates, rows in time.

A tile is [BLOCK_N, BLOCK_H]: rows of the batch by hidden units.
H is passed to kernels as `spans` of SPAN units, which gives the compiler a divisor of every row's
address.
"""

import triton
import triton.language as tl


@triton.jit
def load_planes(tensor, at, units, mask, H, COUNT: tl.constexpr):
    """The COUNT values of each unit that lie side by side in a row, in float32; () if none."""
    planes = ()
    for k in tl.static_range(COUNT):
        place = tensor + at * (COUNT * H) + units + k * H
        planes = planes + (tl.load(place, mask=mask, other=0.0).to(tl.float32),)
    return planes


@triton.jit
def store_planes(tensor, values, at, units, mask, H, PLACES: tl.constexpr,
                 FLAGS: tl.constexpr = None, FLAG: tl.constexpr = None):  # fmt: skip
    """Store values that lie side by side in a row: in plane k the one at PLACES[k], -1 for none.

    With a FLAG, only planes with that flag are stored.
    """
    COUNT: tl.constexpr = len(PLACES)
    for k in tl.static_range(COUNT):
        if PLACES[k] >= 0 and (FLAG is None or FLAGS[k] == FLAG):
            tl.store(tensor + at * (COUNT * H) + units + k * H, values[PLACES[k]], mask=mask)


@triton.jit
def store_saved(saved, values, at, units, mask, H, CELL: tl.constexpr, STAGE: tl.constexpr):
    """Store the saved values of a stage, if there is a tensor for them."""
    PLACES: tl.constexpr = CELL.stages[STAGE].saved_at
    if saved is not None:
        store_planes(saved, values, at, units, mask, H, PLACES)


@triton.jit
def store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at, units, mask, H, CELL: tl.constexpr,
                STAGE: tl.constexpr, OWN: tl.constexpr):  # fmt: skip
    """Store gradients that a stage gives: those that its OWN products read, the others, or all."""
    GRAD_AT: tl.constexpr = CELL.stages[STAGE].grad_at
    BESIDE_AT: tl.constexpr = CELL.stages[STAGE].beside_at
    OWN_GATES: tl.constexpr = CELL.stages[STAGE].own_gates
    OWN_COLUMNS: tl.constexpr = CELL.stages[STAGE].own_columns
    store_planes(grad_gates_x, grad_x, at, units, mask, H, GRAD_AT, OWN_GATES, OWN)
    if grad_gates_h is not None:
        store_planes(grad_gates_h, beside, at, units, mask, H, BESIDE_AT, OWN_COLUMNS, OWN)


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
def load_vectors(bias, units, unit_mask, H, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Biases, or the parameters that follow them, from number FIRST on; () without a bias."""
    vectors = ()
    if bias is not None:
        for k in tl.static_range(FIRST, FIRST + COUNT):
            vector = tl.load(bias + k * H + units, mask=unit_mask, other=0.0).to(tl.float32)
            vectors = vectors + (vector,)
    return vectors


@triton.jit
def gates_of(products, bias, biases, CELL: tl.constexpr, STAGE: tl.constexpr):
    """Products of a stage plus, if there is a bias, its values, by the number of the gate."""
    FIRST: tl.constexpr = CELL.stages[STAGE].first_gate
    COUNT: tl.constexpr = CELL.stages[STAGE].gates
    sums = ((),) * FIRST
    for k in tl.static_range(COUNT):
        sums = sums + (products[k] if bias is None else products[k] + biases[FIRST + k],)
    return sums + ((),) * (CELL.gates - FIRST - COUNT)


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
def entering(reset, t, rows, N, mask):
    """Where a state enters step t: `mask` without the rows that are reset there."""
    if reset is None:
        return mask
    else:
        return mask & (tl.load(reset + tl.cast(t, tl.int64) * N + rows, mask=mask, other=0) == 0)


@triton.jit
def forward_rows(s, steps, reverse, rows, N, length, offsets, reset):
    """Each row at the s-th step.

    Returns:
        Its index; whether it is alive, whether a state enters the step, and whether the row ends.
    """
    t = time_at(s, steps, reverse)
    alive = t < length
    last = alive & (time_at(length - 1 - t, length, reverse) == 0)
    return rows_at(t, rows, N, offsets), alive, entering(reset, t, rows, N, alive), last


@triton.jit
def backward_rows(s, steps, reverse, rows, N, length, offsets, reset):
    """Each row at the s-th step from the end.

    Returns:
        Its index and that of the step before; whether it is alive, whether a state enters the step,
        and whether that is the state after the step before: otherwise it is the first one.
    """
    t = time_at(s, steps, 1 - reverse)
    before = t - 1 + 2 * reverse
    alive = within(t, length)
    inside = tl.minimum(tl.maximum(t, 0), steps - 1)
    enters = entering(reset, inside, rows, N, alive)
    index = rows_at(inside, rows, N, offsets)
    before_index = rows_at(tl.minimum(tl.maximum(before, 0), steps - 1), rows, N, offsets)
    return index, before_index, alive, enters, enters & within(before, length)


@triton.jit
def outer(row_mask, unit_mask):
    """The mask of a tile: rows by units."""
    return row_mask[:, None] & unit_mask[None, :]


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
