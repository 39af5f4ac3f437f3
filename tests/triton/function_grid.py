"""tanh and sigmoid of the Triton kernels alone, in units in the last place; see activations.py."""

import interpreter  # noqa: F401  isort: skip  (sets TRITON_INTERPRET)
import activations
import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from seqkernels.triton import cells

BLOCK = 1 << 16


@triton.jit
def _kernel(x, sigmoid, tanh, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < N, other=0.0)
    tl.store(sigmoid + at, cells.sigmoid(value), mask=at < N)
    tl.store(tanh + at, cells.tanh(value), mask=at < N)


def both(x: Tensor) -> dict[str, Tensor]:
    """Sigmoid and tanh of x [n] by the functions that the kernels call."""
    found = {"sigmoid": torch.empty_like(x), "tanh": torch.empty_like(x)}
    with np.errstate(over="ignore", invalid="ignore"):
        _kernel[(triton.cdiv(len(x), BLOCK),)](x, *found.values(), len(x), BLOCK=BLOCK)
    return found


def functions():
    """The formulas with numpy's exponential: a GPU's is off by more the larger |x| is."""
    bounds = {"sigmoid": 4.0, "tanh": 2.0}
    activations.check(both, torch.float32, bounds, dense=200_001)
