"""The CUDA ops on a GPU, small sizes: parity of every kernel, cell, number format and option.

The kernels' logic is proved on the emulator; here stands what only a device can show.
"""

import pytest
import torch
from cuda_cases import pair, refusal
from gpu import require_cuda
from parity import MATHS, Case, check_cell, check_sequence, recurrent_math

from seqkernels.cells import CELLS
from seqkernels.ops import get

pytestmark = pytest.mark.cuda

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SMALL = {
    "T1-N1-H1": Case(1, 1, 1),
    "T7-N3-H5": Case(7, 3, 5),
    "T30-N33-H100": Case(30, 33, 100),
    "T20-N13-H200-reverse": Case(20, 13, 200, reverse=True),
    "T12-N16-H256-no-bias": Case(12, 16, 256, bias=False),
    "lengths": Case(9, 11, 650, lengths=(3, 6, 1, 9, 2, 6, 4, 4, 2, 1, 2)),
    "lengths-reverse": Case(6, 5, 72, lengths=(3, 6, 1, 5, 0), reverse=True),
    "lengths-of-many-slices": Case(12, 40, 96, lengths=(12, 3, 1, 0, 7, 12, 2, 9) * 5),
    "packed": Case(4, 9, 130, batch_sizes=(9, 3, 3, 1)),
    "packed-reverse": Case(4, 5, 40, batch_sizes=(5, 3, 3, 1), reverse=True),
    "reset-lengths-reverse": Case(6, 4, 40, lengths=(3, 5, 1, 4), reset=True, reverse=True),
}


@pytest.fixture(autouse=True)
def device():
    return require_cuda("CUDA kernels")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, hidden_size", [(1, 17), (3, 5), (2, 100), (128, 1024)])
@pytest.mark.parametrize("cell", [name for name, spec in CELLS.items() if spec.pointwise])
def test_cell(cell, rows, hidden_size, dtype, device):
    functions = get(f"{cell}_cell"), get(f"{cell}_cell_backward")
    check_cell(cell, rows, hidden_size, dtype, *functions, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("cell", CELLS)
def test_stepwise(cell, case, dtype, device):
    check_sequence(cell, case, dtype, *pair(cell, ""), device=device)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("cell", CELLS)
def test_persistent(cell, case, math, device, plans):
    with recurrent_math(math) as (dtype, tf32):
        if refusal(cell, case, dtype) is None:
            check_sequence(cell, case, dtype, *pair(cell, "_persistent"), device=device, tf32=tf32)
        else:
            # Only strict float32 may find no room among these sizes.
            assert math == "float32" and case.hidden_size > 256
