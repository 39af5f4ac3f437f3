"""One step with its products on the CPU: the op for few rows, and the step of the cells."""

import pytest
import torch
from cpu_cases import op
from tolerance import assert_parity

from seqkernels import functional, reference
from seqkernels.cells import CELLS

POINTWISE = [name for name, spec in CELLS.items() if spec.pointwise]


def make_inputs(name: str, batch: int, size: int, hidden: int, dtype: torch.dtype) -> list:
    """x, weights, biases and state of one step, float64 values that `dtype` holds."""
    spec = CELLS[name]
    rows = spec.gates * hidden
    shapes = [(batch, size), (rows, size), (rows, hidden), (rows,), (rows,)]
    shapes += [(batch, hidden)] * spec.states
    scale = [1, max(size, 1) ** -0.5, hidden**-0.5, 1, 1, 1, 1]
    found = [torch.randn(s, dtype=torch.float64) * k for s, k in zip(shapes, scale, strict=False)]
    return [x.to(dtype) for x in found]


def run_native(name, x, weight_ih, weight_hh, bias_ih, bias_hh, *state):
    with_c = state if len(state) == 2 else (*state, None)
    results = op(f"{name}_step")(x, weight_ih, weight_hh, bias_ih, bias_hh, *with_c, False)
    return results[: len(state)]


def run_cell(name, x, weight_ih, weight_hh, bias_ih, bias_hh, *state):
    return functional.cell(name, x, state, weight_ih, weight_hh, bias_ih, bias_hh, backend="native")


def run_reference(name, x, weight_ih, weight_hh, bias_ih, bias_hh, *state):
    gates_x = torch.nn.functional.linear(x, weight_ih, bias_ih)
    return reference.step(name, gates_x, weight_hh, bias_hh, state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 7, 5), (1, 300, 260), (3, 9, 100), (0, 3, 4), (2, 0, 4)]
)
@pytest.mark.parametrize("name", POINTWISE)
def test_the_op_of_few_rows(name, sizes, dtype):
    inputs = make_inputs(name, *sizes, dtype)
    ours, theirs = run_native(name, *inputs), run_reference(name, *inputs)
    exact = run_reference(name, *[x.double() for x in inputs])
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert_parity(a, b, c, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 60, 45), (2, 9, 100), (64, 130, 140)])
@pytest.mark.parametrize("name", POINTWISE)
def test_the_step_of_a_cell_and_every_gradient(name, sizes, dtype):
    inputs = make_inputs(name, *sizes, dtype)

    def results_and_grads(run, values):
        values = [x.detach().requires_grad_() for x in values]
        results = run(name, *values)
        generator = torch.Generator().manual_seed(1)
        factors = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in results]
        return [*results, *torch.autograd.grad(results, values, factors, materialize_grads=True)]

    ours, theirs = (results_and_grads(run, inputs) for run in (run_cell, run_reference))
    exact = results_and_grads(run_reference, [x.double() for x in inputs])
    for k, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(a, b, c, f"{name} {k}")


@pytest.mark.parametrize("name", POINTWISE)
def test_second_derivatives(name):
    inputs = [x.requires_grad_() for x in make_inputs(name, 2, 3, 2, torch.float64)]
    if name == "rnn_relu":
        inputs = [x.detach().abs().add(0.5).requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *values: run_cell(name, *values), inputs)


def test_wrong_sizes_and_dtypes_are_named():
    x, weight_ih, *rest = make_inputs("gru", 2, 3, 4, torch.float32)
    with pytest.raises(RuntimeError, match=r"expected weight_ih of size \[12, 3\], got \[11, 3\]"):
        op("gru_step")(x, weight_ih[:11], *rest, None, False)
    halves = [v.bfloat16() for v in (x, weight_ih, *rest)]
    with pytest.raises(RuntimeError, match="gru_step: expected float32 or float64"):
        op("gru_step")(*halves, None, False)
