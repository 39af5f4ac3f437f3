"""The gradient of a weight: sums over rows at odd sizes, in pieces, in place; what is refused."""

import pytest
import torch

from seqkernels.ops import get
from seqkernels.ops.weights import rows_product

DTYPES = (torch.float32, torch.float64)
# Rows, columns of the gradient, columns of x: one of each, tails of every tile, several blocks.
SIZES = [
    (1, 1, 1),
    (3, 12, 32),
    (7, 13, 5),
    (128, 24, 64),
    (129, 25, 33),
    (300, 100, 37),
    (40, 50, 1100),
]


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_as_exact_as_a_product_of_torch(sizes, threads, dtype):
    rows, columns, width = sizes
    torch.manual_seed(0)
    grad, x = torch.randn(rows, columns, dtype=dtype), torch.randn(rows, width, dtype=dtype)
    expected = grad.double().t() @ x.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = get("rows_product")([grad], [x])
    finally:
        torch.set_num_threads(before)
    assert found.shape == (columns, width) and found.is_contiguous()
    # In float64 the expected product has errors of its own.
    floor = (2 if dtype == torch.float32 else 8) * torch.finfo(dtype).eps
    assert relative_error(found, expected) <= 2 * relative_error(grad.t() @ x, expected) + floor


def test_pieces_and_slices_give_the_sum_of_the_whole():
    torch.manual_seed(1)
    wide, x = torch.randn(300, 90, dtype=torch.float64), torch.randn(300, 41, dtype=torch.float64)
    found = get("rows_product")(
        [wide[:, 3:40], wide[:, 40:41], wide[:, 60:]], [x[:5], x[5:5], x[5:]]
    )
    expected = torch.cat((wide[:, 3:40], wide[:, 40:41], wide[:, 60:]), 1).t() @ x
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_operands_that_are_not_contiguous():
    torch.manual_seed(2)
    grad, x = torch.randn(20, 40, dtype=torch.float64).t(), torch.randn(30, 40).double().t()
    torch.testing.assert_close(rows_product((grad,), (x,)), grad.t() @ x, rtol=1e-12, atol=1e-12)


def test_threads_do_not_change_a_bit():
    torch.manual_seed(3)
    grad, x = torch.randn(500, 200), torch.randn(500, 96)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(rows_product((grad,), (x,)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_types_are_products_of_torch(dtype):
    grad, x = torch.randn(9, 8).to(dtype), torch.randn(9, 4).to(dtype)
    halves = rows_product((grad[:, :3], grad[:, 3:]), (x[:4], x[4:]))
    expected = grad.double().t() @ x.double()
    assert halves.dtype == dtype
    bound = 2 * relative_error(grad.t() @ x, expected) + 2 * torch.finfo(dtype).eps
    assert relative_error(halves, expected) <= bound


def test_no_rows_give_zeros():
    found = get("rows_product")([torch.randn(0, 6)], [torch.randn(0, 4)])
    assert torch.equal(found, torch.zeros(6, 4))


@pytest.mark.parametrize(
    ("grads", "x", "message"),
    [
        ([], [(3, 2)], "expected at least one tensor"),
        ([(3, 4)], [(2, 2)], "the gradients have 3 rows, x has 2"),
        (
            [(3, 4), (2, 4)],
            [(3, 2)],
            r"expected gradients of \[3, 4\] or other columns, got \[2, 4\]",
        ),
        ([(3, 4)], [(2, 2), (1, 3)], r"expected x of size \[1, 2\], got \[1, 3\]"),
        ([(3, 4, 1)], [(3, 2)], r"got \[3, 4, 1\]"),
    ],
)
def test_sizes_that_do_not_fit_are_named(grads, x, message):
    with pytest.raises(RuntimeError, match=message):
        get("rows_product")([torch.randn(s) for s in grads], [torch.randn(s) for s in x])


def test_other_dtypes_are_refused():
    with pytest.raises(RuntimeError, match="expected float32 or float64 tensors"):
        get("rows_product")([torch.randn(2, 2).half()], [torch.randn(2, 2).half()])


def test_opcheck():
    grads, x = [torch.randn(5, 6), torch.randn(5, 3)], [torch.randn(2, 4), torch.randn(3, 4)]
    torch.library.opcheck(get("rows_product"), (grads, x))
