"""Every option of the Triton sequence ops on a GPU, forward and backward, against the reference."""

import pytest
import torch
from gpu import require_cuda
from parity import Case, check_sequence

from seqkernels.cells import CELLS
from seqkernels.ops import get

pytestmark = pytest.mark.cuda

OPTIONS = {
    "no-bias": Case(5, 9, 72, bias=False),
    "lengths-reverse": Case(7, 11, 100, lengths=(3, 6, 1, 0, 7, 6, 4, 4, 2, 1, 2), reverse=True),
    "packed-reverse": Case(4, 9, 130, batch_sizes=(9, 3, 3, 1), reverse=True),
    "reset-lengths": Case(6, 4, 40, lengths=(3, 5, 1, 4), reset=True),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_options(cell, case, dtype):
    device = require_cuda("runs Triton kernels")
    import seqkernels.triton  # noqa: F401  (defines the ops)

    pair = get(f"{cell}_sequence_triton"), get(f"{cell}_sequence_triton_backward")
    check_sequence(cell, case, dtype, *pair, device=device)
