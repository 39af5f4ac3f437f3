"""The pointwise cell ops of the CPU against the reference steps."""

import pytest
import torch
from cpu_cases import DTYPES, op
from tolerance import assert_parity

from seqkernels import reference
from seqkernels.cells import CELLS

POINTWISE = [name for name, spec in CELLS.items() if spec.pointwise]


def make_inputs(name: str, batch: int, hidden: int, dtype: torch.dtype) -> list:
    """gates_x, gates_h [N, G*H], h and c (or None) [N, H]."""
    spec = CELLS[name]
    wide = [torch.randn(batch, spec.gates * hidden, dtype=torch.float64) for _ in range(2)]
    state = [torch.randn(batch, hidden, dtype=torch.float64) for _ in range(spec.states)]
    found = [x.to(dtype).requires_grad_() for x in (*wide, *state)]
    return found if spec.states > 1 else [*found, None]


def run_native(name, inputs):
    new_h, new_c, _ = op(f"{name}_cell")(*inputs, True)
    return (new_h, new_c) if CELLS[name].states > 1 else (new_h,)


def run_reference(name, inputs):
    gates_x, gates_h, *state = [x for x in inputs if x is not None]
    return reference.cell(name, gates_x, gates_h, tuple(state))


def results_and_grads(run, name, inputs):
    inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
    results = run(name, inputs)
    leaves = [x for x in inputs if x is not None]
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in results
    ]
    grads = torch.autograd.grad(results, leaves, weights, materialize_grads=True)
    return [*results, *grads]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("batch", "hidden"), [(1, 1), (3, 5), (4, 100), (130, 160), (0, 4)])
@pytest.mark.parametrize("name", POINTWISE)
def test_results_and_gradients(name, batch, hidden, dtype):
    inputs = make_inputs(name, batch, hidden, dtype)
    doubles = [None if x is None else x.double() for x in inputs]
    ours = results_and_grads(run_native, name, inputs)
    theirs = results_and_grads(run_reference, name, inputs)
    exact = results_and_grads(run_reference, name, doubles)
    for k, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(a, b, c, f"{name} {k}")


@pytest.mark.parametrize("name", POINTWISE)
def test_without_save(name):
    inputs = [None if x is None else x.detach() for x in make_inputs(name, 3, 9, torch.float32)]
    kept, plain = (op(f"{name}_cell")(*inputs, save) for save in (True, False))
    assert torch.equal(kept[0], plain[0])
    assert plain[2].numel() == 0


@pytest.mark.parametrize("name", POINTWISE)
def test_wrong_sizes_are_named(name):
    gates_x, gates_h, h, c = (
        None if x is None else x.detach() for x in make_inputs(name, 3, 4, torch.float32)
    )
    columns = CELLS[name].gates * 4
    message = rf"{name}_cell: expected gates_h of size \[3, {columns}\], got \[2, {columns}\]"
    with pytest.raises(RuntimeError, match=message):
        op(f"{name}_cell")(gates_x, gates_h[:2], h, c, True)
    with pytest.raises(RuntimeError, match="h has another dtype than the other arguments"):
        op(f"{name}_cell")(gates_x, gates_h, h.double(), c, True)
    with pytest.raises(RuntimeError, match=r"expected h of size \[N, H\], got \[12\]"):
        op(f"{name}_cell")(gates_x, gates_h, h.flatten(), c, True)
