"""The recurrent products of the sequence kernels, forward and backward.

They accumulate in float32; what is multiplied stays in the storage dtype. Forward, all gates of a
tile come from one wide product whose columns hold the gates of a unit side by side, padded to a
power of two in registers only. Backward, each run of gates is a product of its own.
With SPLIT == 1 the warps share a tile. With SPLIT > 1 each warp multiplies its own share of the
depth. Then the program's weights may be `resident`: loaded once, in CHUNKS chunks of the depth, and
kept in shared memory for all steps.
"""

import triton
import triton.language as tl


@triton.jit
def stage_weight(weight, gate, H):
    """The rows of the weights from a gate on."""
    return weight + tl.cast(H, tl.int64) * gate * H


@triton.jit
def wide_columns(first_unit, H, GATES: tl.constexpr, BLOCK_H: tl.constexpr):
    """Row of the weights for each column of a wide product, and whether it exists."""
    WIDTH: tl.constexpr = 4 if GATES > 2 else GATES
    columns = tl.arange(0, BLOCK_H * WIDTH)
    gate = columns % WIDTH
    unit = first_unit + columns // WIDTH
    return gate * H + unit, (gate < GATES) & (unit < H)


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
def depth_at(i, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr):
    """Positions of the i-th chunk of a product's depth, [SPLIT, BLOCK_K]."""
    within = tl.arange(0, SPLIT)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    return i * (SPLIT * BLOCK_K) + within


@triton.jit
def load_left(left, left_mask, k, depth):
    """A chunk of the left matrix, [SPLIT, BLOCK_N, BLOCK_K], past L1: other programs wrote it."""
    mask = left_mask[None, :, None] & (k < depth)[:, None, :]
    return tl.load(left[None, :, None] + k[:, None, :], mask=mask, other=0.0,
                   cache_modifier=".cg")  # fmt: skip


@triton.jit
def load_weight(weight, columns, column_mask, k, depth, H, TRANSPOSED: tl.constexpr):
    """A chunk of the weights [.., H] or their transpose, [SPLIT, BLOCK_K, columns]."""
    mask = column_mask[None, None, :] & (k < depth)[:, :, None]
    if TRANSPOSED:
        place = columns[None, None, :] * H + k[:, :, None]
    else:
        place = columns[None, None, :] + k[:, :, None] * H
    return tl.load(weight + place, mask=mask, other=0.0)


@triton.jit
def resident_weight(weight, columns, column_mask, depth, H, TRANSPOSED: tl.constexpr,
                    CHUNKS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """All CHUNKS chunks of the weights or their transpose; none if CHUNKS is 0."""
    resident = ()
    for i in tl.static_range(CHUNKS):
        k = depth_at(i, SPLIT, BLOCK_K)
        resident = resident + (load_weight(weight, columns, column_mask, k, depth, H, TRANSPOSED),)
    return resident


@triton.jit
def product(left, left_mask, weight, columns, column_mask, depth, H, total, resident,
            TRANSPOSED: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
            SPLIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Add `left` times the weights to total: [BLOCK_N, columns], or [SPLIT, BLOCK_N, columns].

    left: pointers to the first of each row's `depth` values, [BLOCK_N].
    """
    if SPLIT == 1:
        for start in range(0, depth, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            a = tl.load(left[:, None] + k[None, :],
                        mask=left_mask[:, None] & (k < depth)[None, :], other=0.0)  # fmt: skip
            # The term with H first: the other order takes more registers.
            if TRANSPOSED:
                place = weight + columns[None, :].to(tl.int64) * H + k[:, None]
            else:
                place = weight + k[:, None].to(tl.int64) * H + columns[None, :]
            b = tl.load(place, mask=column_mask[None, :] & (k < depth)[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    elif CHUNKS > 0:
        # Loads first, AHEAD of them: their latencies overlap.
        for first in tl.static_range(0, CHUNKS, AHEAD):
            lefts = ()
            for i in tl.static_range(first, min(first + AHEAD, CHUNKS)):
                k = depth_at(i, SPLIT, BLOCK_K)
                lefts = lefts + (load_left(left, left_mask, k, depth),)
            for i in tl.static_range(first, min(first + AHEAD, CHUNKS)):
                total = tl.dot(lefts[i - first], resident[i], total, input_precision=PRECISION)
    else:
        for i in range(0, tl.cdiv(depth, SPLIT * BLOCK_K)):
            k = depth_at(i, SPLIT, BLOCK_K)
            a = load_left(left, left_mask, k, depth)
            b = load_weight(weight, columns, column_mask, k, depth, H, TRANSPOSED)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def gates_product(left, left_mask, weight, first_unit, H, GATES: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
                  BLOCK_K: tl.constexpr, resident=None, CHUNKS: tl.constexpr = 0,
                  AHEAD: tl.constexpr = 1, SPLIT: tl.constexpr = 1):  # fmt: skip
    """The product h W^T for the units of one tile: GATES blocks [BLOCK_N, BLOCK_H]."""
    WIDTH: tl.constexpr = 4 if GATES > 2 else GATES
    COLUMNS: tl.constexpr = BLOCK_H * WIDTH
    wide = tl.zeros((BLOCK_N, COLUMNS) if SPLIT == 1 else (SPLIT, BLOCK_N, COLUMNS), tl.float32)
    wide = product(left, left_mask, weight, *wide_columns(first_unit, H, GATES, BLOCK_H), H,
                   H, wide, resident, True, CHUNKS, AHEAD, SPLIT, PRECISION, BLOCK_K)  # fmt: skip
    return split_gates(wide if SPLIT == 1 else tl.sum(wide, 0), GATES, BLOCK_N, BLOCK_H)


@triton.jit
def run_grads(grad_gates_x, grad_gates_h, index, H, CELL: tl.constexpr, STAGE: tl.constexpr,
                RUN: tl.constexpr):  # fmt: skip
    """Pointers to the gate gradients of each row that a product through a stage reads."""
    COLUMN: tl.constexpr = CELL.stages[STAGE].runs[RUN].column
    if CELL.stages[STAGE].runs[RUN].separate:
        return grad_gates_h + index * (CELL.columns * H) + COLUMN * H
    else:
        return grad_gates_x + index * (CELL.gates * H) + COLUMN * H


@triton.jit
def stage_grads(grad_gates_x, grad_gates_h, index, row_mask, weight, units, unit_mask, H,
                CELL: tl.constexpr, STAGE: tl.constexpr, PRECISION: tl.constexpr,
                BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, resident=None,
                CHUNKS: tl.constexpr = None, AHEAD: tl.constexpr = 1,
                SPLIT: tl.constexpr = 1):  # fmt: skip
    """What flows back through the product of a stage, from the rows at `index`.

    `resident` and CHUNKS are those of every run of every stage.
    """
    FIRST: tl.constexpr = CELL.stages[STAGE].first_run
    total = tl.zeros((BLOCK_N, BLOCK_H) if SPLIT == 1 else (SPLIT, BLOCK_N, BLOCK_H), tl.float32)
    for i in tl.static_range(len(CELL.stages[STAGE].runs)):
        total = product(
            run_grads(grad_gates_x, grad_gates_h, index, H, CELL, STAGE, i), row_mask,
            stage_weight(weight, CELL.stages[STAGE].runs[i].row, H), units, unit_mask,
            CELL.stages[STAGE].runs[i].gates * H, H, total,
            None if CHUNKS is None else resident[FIRST + i], False,
            0 if CHUNKS is None else CHUNKS[FIRST + i], AHEAD, SPLIT, PRECISION, BLOCK_K,
        )  # fmt: skip
    return total if SPLIT == 1 else tl.sum(total, 0)
