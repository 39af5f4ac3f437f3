"""Packed sequences: where rows lie, gradients at the edges, and what the way there dispatches."""

from itertools import combinations_with_replacement

import pytest
import torch
from dispatched import Dispatched

from seqkernels.cells import CELLS
from seqkernels.nn import projection
from seqkernels.ops import get
from seqkernels.ops.joined import EAGER_JOINED, Inputs, Weights
from seqkernels.ops.layer import EAGER
from seqkernels.ops.packed import batch_sizes_on, last_places, row_lengths, step_offsets
from seqkernels.ops.sequence import reference_sequence

META = torch.device("meta")
EDGES = {
    "one step": (3,),
    "one row": (1, 1, 1, 1),
    "one value": (1,),
    "equal rows": (3, 3, 3),
    "strictly falling": (4, 3, 2, 1),
    "all kinds": (5, 5, 2, 2, 2, 1),
}
every_edge = pytest.mark.parametrize("sizes", EDGES.values(), ids=EDGES)
both_directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


# Every way to pack up to five rows of up to five steps, and long ones.
SMALL = [x for t in range(1, 6) for x in combinations_with_replacement((5, 4, 3, 2, 1), t)]
LARGE = [(200,) * 7 + tuple(range(150, 0, -1)), (1,) * 1000, (3,) * 999 + (2, 1)]


def test_places_follow_from_batch_sizes():
    for sizes in SMALL + LARGE:
        given, batch, rows = torch.tensor(sizes), sizes[0], sum(sizes)
        moved = get("batch_sizes_on")(given, batch, rows, torch.device("cpu"))
        assert torch.equal(moved, given) and moved.data_ptr() != given.data_ptr()
        lengths = [sum(size > n for size in sizes) for n in range(batch)]
        offsets = [sum(sizes[:t]) for t in range(len(sizes))]
        assert row_lengths(moved, batch).tolist() == lengths
        assert step_offsets(moved).tolist() == offsets
        places = [offsets[length - 1] + n for n, length in enumerate(lengths)]
        assert last_places(moved, batch).tolist() == places


@pytest.mark.parametrize("sizes", [(3, 2, 3), (4, 2, 2), (2, 2, 2), (3, 3, 1), (3, 3, 0, 2), ()])
def test_numbers_that_are_no_batch_sizes_are_refused(sizes):
    sizes = torch.tensor(sizes, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="batch_sizes must begin with the batch of 3"):
        batch_sizes_on(sizes, 3, 8, META)


def test_the_op_is_complete():
    arguments = (torch.tensor([3, 3, 2]), 3, 8, torch.device("cpu"))
    torch.library.opcheck(get("batch_sizes_on"), arguments)


@both_directions
@every_edge
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_at_the_edges(cell, sizes, reverse):
    """Those of all inputs, of which that of the recurrent weights reads every previous state."""
    spec, hidden_size = CELLS[cell], 3

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    gates_x = random(sum(sizes), spec.gates * hidden_size)
    weight_hh = random(spec.gates * hidden_size, hidden_size)
    state = [random(sizes[0], hidden_size) for _ in range(spec.states)]
    layout = (None, torch.tensor(sizes), None, reverse)
    absent = [None] * (2 - spec.states)
    ours = get(f"{cell}_sequence")(gates_x, weight_hh, None, *state, *absent, *layout, True)[0]
    expected, _, _ = reference_sequence(spec, gates_x, weight_hh, None, state, *layout)
    grad = torch.randn_like(expected)
    found, wanted = (
        torch.autograd.grad(output, [gates_x, weight_hh, *state], grad)
        for output in (ours, expected)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def training_step(cell, sizes, reverse, device):
    """Forward and backward of a packed layer, beside the kernels; what it dispatches."""
    spec, hidden_size, input_size = CELLS[cell], 4, 5

    def zeros(*shape):
        return torch.zeros(shape, device=device, requires_grad=True)

    columns = spec.gates * hidden_size
    weights = zeros(columns, input_size), zeros(columns, hidden_size), zeros(columns)
    state = (*(zeros(sizes[0], hidden_size) for _ in range(spec.states)), None)[:2]
    inputs = (zeros(sum(sizes), input_size), *weights, zeros(columns), *state)
    with Dispatched() as dispatched:
        layout = (None, torch.tensor(sizes), None, reverse)
        suffix = "" if device.type == "cpu" else "_persistent"
        output = EAGER[cell](*inputs, *layout, True, suffix)[0]
        output.backward(torch.zeros_like(output))
    assert all(x.grad is not None for x in inputs if x is not None)
    return dispatched.names


@both_directions
@pytest.mark.parametrize("cell", CELLS)
def test_training_copies_nothing_from_the_host(cell, reverse):
    """On the device "meta" the ops of the kernels do nothing, everything else is dispatched."""
    names = training_step(cell, (6, 6, 4, 1), reverse, META)
    assert "seqkernels.batch_sizes_on.default" in names


@pytest.mark.parametrize("stacked", [False, True], ids=["directions", "layers"])
@pytest.mark.parametrize("cell", CELLS)
def test_training_in_one_launch_copies_nothing_from_the_host(cell, stacked):
    spec, hidden_size, sizes = CELLS[cell], 4, (6, 6, 4, 1)

    def zeros(*shape):
        return torch.zeros(shape, device=META, requires_grad=True)

    columns = spec.gates * hidden_size
    ih, hh = ([zeros(columns, hidden_size) for _ in range(2)] for _ in range(2))
    weights = Weights(ih, hh, [zeros(columns), zeros(columns)], [zeros(columns), zeros(columns)])
    state = (*(zeros(2, sizes[0], hidden_size) for _ in range(spec.states)), None)[:2]
    inputs = Inputs(zeros(sum(sizes), hidden_size), *state, None, torch.tensor(sizes), None)
    with Dispatched() as dispatched:
        output = EAGER_JOINED[cell](inputs, weights, stacked, "_persistent", False)[0]
        output.backward(torch.zeros_like(output))
    assert dispatched.names.count("seqkernels.batch_sizes_on.default") == 2
    assert all(x.grad is not None for part in weights for x in part)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
@both_directions
def test_the_ops_of_training_do_not_grow_with_the_sequence(reverse, cell, device):
    short, long = (
        training_step(cell, (9,) * n + (4,) * n, reverse, torch.device(device)) for n in (2, 300)
    )
    assert short == long and len(short) > 10


@both_directions
def test_a_projected_initial_state_copies_nothing_from_the_host(reverse):
    sizes = torch.tensor([6, 6, 4, 1])
    h_0, x = torch.empty(6, 3, device=META), torch.empty(17, 5, device=META)
    with Dispatched():
        found = projection._at_first_step(h_0, x, None, sizes, None, reverse)
    assert found.shape == (17, 3)


def test_a_copy_from_the_host_would_be_found():
    with pytest.raises(AssertionError, match="to another device"), Dispatched():
        torch.tensor([1, 2]).to(META, non_blocking=True)
