"""Products through oneDNN, against torch's."""

import time

import pytest
import torch
from tolerance import assert_parity
from torch.utils.flop_counter import FlopCounterMode

from seqkernels.ops import gemm
from seqkernels.ops.gemm import linear, matmul

ROWS, DEPTH, COLUMNS = 163, 200, 192


@pytest.fixture(autouse=True, params=[True, False], ids=["oneDNN", "torch"])
def library(request, monkeypatch):
    """Both ways, whichever the processor takes."""
    monkeypatch.setattr(gemm, "_ONEDNN_WINS", request.param)


def layouts(rows, columns):
    """A matrix in every layout that the backward passes make."""
    wide = torch.randn(rows, 2 * columns)
    return {
        "whole": torch.randn(rows, columns),
        "transposed": torch.randn(columns, rows).t(),
        "columns": wide[:, :columns],
        "last columns": wide[:, columns:],
        "transposed columns": torch.randn(columns, 2 * rows)[:, rows:].t(),
    }


@pytest.mark.parametrize("right", layouts(1, 1))
@pytest.mark.parametrize("left", layouts(1, 1))
def test_matmul_of_any_layouts(left, right):
    torch.manual_seed(0)
    a, b = layouts(ROWS, DEPTH)[left], layouts(DEPTH, COLUMNS)[right]
    assert_parity(matmul(a, b), a @ b, a.double() @ b.double(), f"{left} x {right}")


def test_linear():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(ROWS, DEPTH), torch.randn(COLUMNS, DEPTH), torch.randn(COLUMNS)
    expected = torch.nn.functional.linear(x, weight, bias)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    assert_parity(linear(x, weight, bias), expected, exact, "linear")


def test_a_slice_of_columns_does_not_take_a_reference_kernel():
    a, b = torch.randn(256, 1152), torch.randn(1152, 768)[:, :512]

    def seconds(product):
        product(a, b)
        begin = time.thread_time()
        product(a, b)
        return time.thread_time() - begin

    # oneDNN's reference product takes a thousand times as long.
    assert min(seconds(matmul) for _ in range(3)) < 50 * min(seconds(torch.mm) for _ in range(3))


def test_the_number_of_shapes_is_bounded(library):
    """oneDNN keeps a product for every number of rows that it is given."""
    classes = {gemm._row_class(rows) for rows in range(1, 1 << 14)}
    assert len(classes) <= 8 * 14
    for rows in range(1, 5000):
        assert rows <= gemm._row_class(rows) <= rows * 9 / 8


@pytest.mark.filterwarnings("ignore::Warning")  # of what torch.jit.trace is, and cannot see
def test_the_switch_and_modes_are_obeyed(library, monkeypatch):
    """Torch takes the product with the switch off, in a trace, and under a mode that looks on."""
    called = []
    monkeypatch.setattr(gemm, "_onednn", lambda *arguments: called.append(arguments))
    x, weight = torch.randn(1024, 64), torch.randn(64, 64)
    before = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)
    try:
        linear(x, weight), matmul(x, weight)
    finally:
        torch._C._set_mkldnn_enabled(before)
    with FlopCounterMode(display=False):
        linear(x, weight), matmul(x, weight)
    torch.jit.trace(linear, (x, weight), check_trace=False)
    assert not called
