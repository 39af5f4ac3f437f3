"""Building blocks of the sequence kernels: planes of gates, recurrent products, rows in time.

A tile is [BLOCK_N, BLOCK_H]: rows of the batch by hidden units. Products accumulate in float32;
the operands stay in the storage dtype. All gates of a tile come from one wide product whose columns
hold the gates of a unit side by side, padded to a power of two in registers alone.
Kernels get H as `spans` of SPAN units, so that the compiler knows a divisor of every row's address.
"""

import triton
import triton.language as tl


@triton.jit
def load_planes(pointers, stride, mask, COUNT: tl.constexpr):
    """COUNT blocks in float32, `stride` elements apart; zeros where the mask is off."""
    planes = ()
    for k in tl.static_range(COUNT):
        planes = planes + (tl.load(pointers + k * stride, mask=mask, other=0.0).to(tl.float32),)
    return planes


@triton.jit
def load_either(first, first_mask, second, second_mask):
    """In float32 what `first` points to where its mask is on, and `second` where its own is."""
    x = tl.load(first, mask=first_mask, other=0.0).to(tl.float32)
    return x + tl.load(second, mask=second_mask, other=0.0).to(tl.float32)


@triton.jit
def store_planes(pointers, stride, mask, planes, COUNT: tl.constexpr):
    """Store COUNT blocks `stride` elements apart, cast to the pointer's dtype."""
    for k in tl.static_range(COUNT):
        tl.store(pointers + k * stride, planes[k], mask=mask)


@triton.jit
def load_bias(bias, units, unit_mask, H, COUNT: tl.constexpr):
    """The bias of every gate as a row, [1, BLOCK_H] each; zeros where there is no bias."""
    rows = ()
    for k in tl.static_range(COUNT):
        if bias is None:
            row = tl.zeros(units.shape, tl.float32)
        else:
            row = tl.load(bias + k * H + units, mask=unit_mask, other=0.0).to(tl.float32)
        rows = rows + (row[None, :],)
    return rows


@triton.jit
def add_rows(planes, rows, COUNT: tl.constexpr):
    """Add one row vector to each plane."""
    sums = ()
    for k in tl.static_range(COUNT):
        sums = sums + (planes[k] + rows[k],)
    return sums


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
