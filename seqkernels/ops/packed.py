"""Where the rows of a packed sequence lie, computed on the device.

Row n of step t stands at `step_offsets(sizes)[t] + n`. Everything follows from `batch_sizes`, which
PackedSequence keeps on the CPU, and which must reach the device without a copy: a CUDA graph cannot
capture a copy from ordinary memory, and one from pinned memory would read that memory again at
every replay, when it may hold something else. The numbers travel as arguments of a kernel instead.
Nothing here waits for the device.
"""

from itertools import pairwise
from operator import mul

import torch
from torch import Tensor

from .registry import LIBRARY, NAMESPACE, get

_NAME = "batch_sizes_on"


def _batch_sizes_on(batch_sizes: Tensor, batch: int, rows: int, device: torch.device) -> Tensor:
    distinct, steps = torch.unique_consecutive(batch_sizes, return_counts=True)
    sizes, steps = distinct.tolist(), steps.tolist()
    total = sum(map(mul, sizes, steps))
    falling = all(above > below for above, below in pairwise((*sizes, 0)))
    if sizes[:1] != [batch] or not falling or total != rows:
        raise RuntimeError(
            f"batch_sizes must begin with the batch of {batch}, never rise, stay above 0 and add "
            f"up to {rows} rows; got sizes {sizes} for {steps} steps"
        )
    result = torch.zeros(batch_sizes.shape, dtype=torch.int64, device=device)
    # Each run of equal sizes gets its own as a scalar, and scalars are arguments of the kernel.
    torch._foreach_add_(result.split(steps), sizes)
    return result


def _fake(batch_sizes, batch, rows, device):
    return torch.empty(batch_sizes.shape, dtype=torch.int64, device=device)


# An op, so that a compiler which only knows the shape of batch_sizes does not look inside.
LIBRARY.define(f"{_NAME}(Tensor batch_sizes, SymInt batch, SymInt rows, Device device) -> Tensor")
LIBRARY.impl(_NAME, _batch_sizes_on, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::{_NAME}", _fake, lib=LIBRARY)


def batch_sizes_on(batch_sizes: Tensor, batch: int, rows: int, device: torch.device) -> Tensor:
    """`batch_sizes` on a device, [T]; on the CPU the tensor itself.

    Args:
        batch_sizes: rows alive at every step, as PackedSequence has them, int64 on the CPU, [T].
        batch: N.
        rows: sum(batch_sizes).
        device: where the packed data lie.

    Raises:
        RuntimeError: the numbers are no batch sizes, or do not fit N and the data; asked only where
            they go to another device.
    """
    if device.type == "cpu":
        return batch_sizes
    return get(_NAME)(batch_sizes, batch, rows, device)


def step_offsets(sizes: Tensor) -> Tensor:
    """Index of the first row of every step in the packed data, [T], from batch sizes, [T]."""
    return sizes.cumsum(0) - sizes


def row_lengths(sizes: Tensor, batch: int) -> Tensor:
    """Length of every row, [N], from batch sizes, [T]: as many steps as have more than n rows."""
    rows = torch.arange(batch, device=sizes.device)
    return sizes.shape[0] - torch.searchsorted(sizes.flip(0), rows, right=True)


def last_places(sizes: Tensor, batch: int) -> Tensor:
    """Index of every row's last step in the packed data, [N], from batch sizes, [T]."""
    rows = torch.arange(batch, device=sizes.device)
    return step_offsets(sizes).index_select(0, row_lengths(sizes, batch) - 1) + rows
