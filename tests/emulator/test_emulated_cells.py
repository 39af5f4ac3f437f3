"""Cell kernels and the stepwise sequence: the CUDA bindings and kernels on the emulator."""

import pytest
import torch
from emulated_ops import check_memory, guarded, ops
from parity import Case, check_cell, check_sequence

from seqkernels.cells import CELLS

pytestmark = pytest.mark.needs("headers")

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
POINTWISE = [name for name, spec in CELLS.items() if spec.pointwise]

CASES = {
    "T1-N1-H1": Case(1, 1, 1),
    "T7-N3-H5": Case(7, 3, 5),
    "T4-N2-H100": Case(4, 2, 100),
    "no-bias": Case(3, 2, 8, bias=False),
    "reverse": Case(5, 3, 8, reverse=True),
    "lengths": Case(6, 4, 5, lengths=(3, 6, 1, 5)),
    "lengths-reverse": Case(6, 4, 8, lengths=(3, 6, 1, 5), reverse=True),
    "lengths-beyond-the-end": Case(3, 2, 24, lengths=(7, 2), reverse=True),
    "packed": Case(4, 5, 7, batch_sizes=(5, 3, 3, 1)),
    "packed-reverse": Case(4, 5, 8, batch_sizes=(5, 3, 3, 1), reverse=True),
    "reset": Case(6, 3, 6, reset=True),
    "reset-lengths": Case(6, 4, 5, lengths=(3, 6, 1, 4), reset=True),
    "reset-lengths-reverse": Case(6, 4, 5, lengths=(3, 6, 1, 4), reset=True, reverse=True),
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors are full of NaN and nothing may touch what lies behind them."""
    with guarded():
        yield
    check_memory()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", POINTWISE)
@pytest.mark.parametrize("rows, hidden_size", [(1, 17), (3, 5), (2, 100), (33, 12)])
def test_cell(cell, dtype, rows, hidden_size):
    library = ops()
    forward = getattr(library, f"{cell}_cell").default
    backward = getattr(library, f"{cell}_cell_backward").default
    check_cell(cell, rows, hidden_size, dtype, forward, backward)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_stepwise(cell, case):
    library = ops()
    forward = getattr(library, f"{cell}_sequence").default
    backward = getattr(library, f"{cell}_sequence_backward").default
    for dtype in DTYPES:
        check_sequence(cell, case, dtype, forward, backward)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps, batch", [(0, 2), (2, 0)])
def test_stepwise_without_work(cell, steps, batch):
    spec, forward = CELLS[cell], getattr(ops(), f"{cell}_sequence").default
    h = torch.randn(batch, 3)
    c = torch.randn(batch, 3 * (spec.states - 1)) if spec.states > 1 else None
    gates_x, weight_hh = torch.randn(steps, batch, spec.gates * 3), torch.randn(spec.gates * 3, 3)
    output, h_n, c_n, *_ = forward(gates_x, weight_hh, None, h, c, None, None, None, False, True)
    assert output.shape == (steps, batch, 3)
    assert torch.equal(h_n, h)
    assert c is None or torch.equal(c_n, c)


def test_wrong_shapes_name_themselves():
    forward = ops().lstm_sequence.default
    gates_x, weight_hh, h = torch.randn(2, 3, 16), torch.randn(16, 4), torch.randn(3, 4)
    nothing = [None, None, None, False, True]
    with pytest.raises(RuntimeError, match="c_0 is missing"):
        forward(gates_x, weight_hh, None, h, None, *nothing)
    with pytest.raises(RuntimeError, match=r"weight_hh of size \[16, 4\], got \[16, 5\]"):
        forward(gates_x, torch.randn(16, 5), None, h, h, *nothing)
    with pytest.raises(RuntimeError, match="another dtype"):
        forward(gates_x.double(), weight_hh, None, h, h, *nothing)
    with pytest.raises(RuntimeError, match="must be positive and fall, got 4 after 3"):
        sizes = torch.tensor([3, 4])
        forward(torch.randn(7, 16), weight_hh, None, h, h, None, sizes, None, False, True)
