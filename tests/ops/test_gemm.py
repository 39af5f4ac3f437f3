"""Products through oneDNN, against torch's."""

import time

import pytest
import torch
from tolerance import assert_parity

from seqkernels.ops.gemm import linear, matmul

ROWS, DEPTH, COLUMNS = 160, 200, 192


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
