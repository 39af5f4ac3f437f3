"""What the cooperative kernels share: the group's counter, and products split over warps.

A group is the programs that own one slice of the batch together. Its counter only grows: a program
adds one with release after it has stored its part of a result, and polls with acquire before it
loads what the others stored. A product's right operand is the program's own columns of the weights,
which stay in shared memory where TILES says that they fit.

Environment, read at import:
    SEQKERNELS_SPIN_LIMIT: polls after which a wait gives up and ends the kernel with an error; 0,
        the default, for none. For finding a hang: the error costs the process its CUDA context.
"""

import os

import triton
import triton.language as tl


def _spin_limit() -> int:
    text = os.environ.get("SEQKERNELS_SPIN_LIMIT") or "0"
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise ValueError(
            f"SEQKERNELS_SPIN_LIMIT must be a number of polls below 2 ** 31, 0 for none, not {text}"
        )
    return int(text)


SPIN_LIMIT = tl.constexpr(_spin_limit())
# Launch options of a kernel that waits. Triton compiles assertions under `debug` alone, and with
# them, unless told otherwise, one for every sum of integers.
WAIT_OPTIONS = {"debug": True, "sanitize_overflow": False} if SPIN_LIMIT.value else {}


@triton.jit
def wait_for(counters, group, target, ALONE: tl.constexpr, KERNEL: tl.constexpr):
    """Return when the group's counter has reached `target`: what was written before is visible.

    KERNEL is the name by which a wait that gives up is reported.
    """
    if not ALONE:
        arrived = tl.atomic_add(counters + group, 0, sem="acquire", scope="gpu")
        if SPIN_LIMIT == 0:
            while arrived < target:
                arrived = tl.atomic_add(counters + group, 0, sem="acquire", scope="gpu")
        else:
            polls = 0
            while (arrived < target) & (polls < SPIN_LIMIT):
                arrived = tl.atomic_add(counters + group, 0, sem="acquire", scope="gpu")
                polls += 1
            if arrived < target:
                # An assertion's text holds no numbers. Printed first: the assertion ends it all.
                tl.device_print(KERNEL + ": group, target, arrived", group, target, arrived)
            assert arrived >= target, KERNEL + ": gave up waiting for its group"


@triton.jit
def announce(counters, group, ALONE: tl.constexpr):
    """Add one to the group's counter, after everything this program has stored."""
    tl.debug_barrier()
    if not ALONE:
        tl.atomic_add(counters + group, 1, sem="release", scope="gpu")


@triton.jit
def depth_at(i, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr):
    """Positions of the i-th part of a product's depth, [SPLIT, BLOCK_K]."""
    part = tl.arange(0, SPLIT)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    return i * (SPLIT * BLOCK_K) + part


@triton.jit
def load_operand(operand, operand_mask, k, depth):
    """Rows of the left operand, [SPLIT, BLOCK_N, BLOCK_K], past L1: other programs wrote them."""
    mask = operand_mask[None, :, None] & (k < depth)[:, None, :]
    return tl.load(operand[None, :, None] + k[:, None, :], mask=mask, other=0.0,
                   cache_modifier=".cg")  # fmt: skip


@triton.jit
def load_weight(weight, columns, column_mask, column_stride, k, depth, depth_stride):
    """The right operand, [SPLIT, BLOCK_K, columns], from weights of any two strides."""
    mask = column_mask[None, None, :] & (k < depth)[:, :, None]
    place = columns[None, None, :] * column_stride + k[:, :, None] * depth_stride
    return tl.load(weight + place, mask=mask, other=0.0)


@triton.jit
def resident_weight(weight, columns, column_mask, column_stride, depth, depth_stride,
                    TILES: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """All TILES parts of the right operand, loaded once; none if TILES is 0."""
    parts = ()
    for i in tl.static_range(TILES):
        k = depth_at(i, SPLIT, BLOCK_K)
        parts = parts + (
            load_weight(weight, columns, column_mask, column_stride, k, depth, depth_stride),
        )
    return parts


@triton.jit
def product(operand, operand_mask, parts, weight, columns, column_mask, column_stride, depth,
            depth_stride, total, TILES: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr,
            PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Add operand times weight to total, [SPLIT, BLOCK_N, columns]: one share of depth per warp."""
    if TILES > 0:
        # Loads first, AHEAD of them: their latencies overlap.
        for first in tl.static_range(0, TILES, AHEAD):
            operands = ()
            for i in tl.static_range(first, min(first + AHEAD, TILES)):
                k = depth_at(i, SPLIT, BLOCK_K)
                operands = operands + (load_operand(operand, operand_mask, k, depth),)
            for i in tl.static_range(first, min(first + AHEAD, TILES)):
                total = tl.dot(operands[i - first], parts[i], total, input_precision=PRECISION)
    else:
        for i in range(0, tl.cdiv(depth, SPLIT * BLOCK_K)):
            k = depth_at(i, SPLIT, BLOCK_K)
            a = load_operand(operand, operand_mask, k, depth)
            b = load_weight(weight, columns, column_mask, column_stride, k, depth, depth_stride)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    return total
