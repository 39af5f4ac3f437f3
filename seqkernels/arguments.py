"""Checks of weights and states before any kernel starts, the same for every backend.

Users replace parameters, and oneDNN and the reference recurrence would read past the end of one
that is too small, or broadcast it. Only sizes, dtypes and devices are read, never values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import modes
from .cells import CELLS


def same(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Check one tensor against the shape it should have and the dtype and device of another."""
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"Expected {name} of size {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise RuntimeError(f"{name} is on {tensor.device}, the input on {like.device}")
    if tensor.dtype != like.dtype:
        raise RuntimeError(f"{name} is {tensor.dtype}, the input {like.dtype}")


def check_part(
    cell: str,
    x: Tensor,
    features: int,
    state: Sequence[Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> None:
    """Check what one layer in one direction, or one step, is given.

    Args:
        cell: a key of `CELLS`.
        x: the input, whose dtype and device the others must have.
        features: I, of this layer's own input.
        state: (h,) or (h, c), each [N, H]; h says what H is.
        weight_ih: [G*H, I].
        weight_hh: [G*H, H].
        bias_ih: [G*H] or None.
        bias_hh: [G*H] or None.

    Raises:
        RuntimeError: one of them does not fit; the message names it, with both sizes.
    """
    h = state[0]
    if h.dim() != 2:
        raise RuntimeError(f"Expected h of size [N, H], got {list(h.shape)}")
    rows, hidden_size = h.shape
    for name, tensor in zip(("h", "c"), state, strict=False):
        same(name, tensor, (rows, hidden_size), x)
    width = CELLS[cell].gates * hidden_size
    same("weight_ih", weight_ih, (width, features), x)
    same("weight_hh", weight_hh, (width, hidden_size), x)
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            same(name, bias, (width,), x)


def check_layout(
    x: Tensor,
    batch_size: int,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
) -> None:
    """Check how the rows of x lie: [T, N, I], or packed, [sum(batch_sizes), I].

    Args:
        x: the input.
        batch_size: N, as the state says it.
        lengths: [N], int64 on x's device, or None.
        batch_sizes: [T], int64 on the CPU, or None; excludes the others. Its values are read by the
            ops.
        reset: [T, N], bool on x's device, or None.

    Raises:
        RuntimeError: one of them does not fit; the message names it, with both sizes.
    """
    if batch_sizes is not None:
        if lengths is not None or reset is not None:
            raise RuntimeError("batch_sizes cannot be given together with lengths or reset")
        if x.dim() != 2:
            raise RuntimeError(f"Expected packed input of size [rows, I], got {list(x.shape)}")
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
            raise RuntimeError(
                "batch_sizes must be a vector of int64 on the CPU, got "
                f"{batch_sizes.dtype} of size {list(batch_sizes.shape)} on {batch_sizes.device}"
            )
        return
    if x.dim() != 3 or x.shape[1] != batch_size:
        raise RuntimeError(f"Expected input of size [T, {batch_size}, I], got {list(x.shape)}")
    for name, tensor, shape, dtype in (
        ("lengths", lengths, (batch_size,), torch.int64),
        ("reset", reset, (x.shape[0], batch_size), torch.bool),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise RuntimeError(f"Expected {name} of size {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != dtype or tensor.device != x.device:
            raise RuntimeError(
                f"{name} must be {dtype} on {x.device}, got {tensor.dtype} on {tensor.device}"
            )


def check_lengths(lengths: Tensor | None, steps: int) -> None:
    """Check the values of `lengths`, [N], where they can be read: from 0 to `steps` each.

    Raises:
        RuntimeError: one is not; the message names its row.
    """
    if lengths is None or not modes.readable(lengths):
        return
    wrong = ((lengths < 0) | (lengths > steps)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise RuntimeError(
            f"lengths must lie between 0 and {steps} steps, got {int(lengths[row])} for row {row}"
        )


def check_batch_sizes(sizes: Sequence[int], batch_size: int, rows: int) -> None:
    """Check the values of `batch_sizes`: they must not rise, nor exceed N, and count every row.

    Raises:
        RuntimeError: they do; the message names them.
    """
    above = batch_size
    for size in sizes:
        if not 0 < size <= above:
            raise RuntimeError(
                f"batch_sizes must be positive and must not rise, nor exceed the batch of "
                f"{batch_size}, got {list(sizes)}"
            )
        above = size
    if sum(sizes) != rows or not sizes:
        raise RuntimeError(f"batch_sizes count {sum(sizes)} rows, the packed input has {rows}")
