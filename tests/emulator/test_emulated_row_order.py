"""Rows of mixed lengths: slices of the persistent kernels take rows of like length together."""

import pytest
import torch
from emulated_ops import check_memory, guarded, library, ops
from parity import Case, actual, check_sequence, inputs_of

from seqkernels import _extension
from seqkernels.cells import CELLS

pytestmark = pytest.mark.needs("headers")

# 13 rows in two slices of 8, shuffled, with rows of no step among them.
LENGTHS = (3, 0, 7, 1, 6, 2, 0, 5, 7, 1, 4, 2, 3)
DEVICES = {
    "cluster": {"max_cluster": 8, "max_units": 16},
    "L2": {"max_cluster": 1, "max_units": 16},
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    with guarded():
        yield
    check_memory()


def pair(cell, **device):
    found = ops(**device)
    return (
        getattr(found, f"{cell}_sequence_persistent").default,
        getattr(found, f"{cell}_sequence_persistent_backward").default,
    )


@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("exchange", DEVICES)
@pytest.mark.parametrize("cell", CELLS)
def test_these_cases_have_slices(cell, exchange):
    for backward in (False, True):
        plan = _extension.C.plan(cell, "bfloat16", backward, 13, 24, **DEVICES[exchange])
        assert (plan["slices"], plan["rows"], plan["exchange"]) == (2, 8, exchange)


@pytest.mark.parametrize("exchange", DEVICES)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"reverse": True, "reset": True}])
@pytest.mark.parametrize("cell", CELLS)
def test_shuffled_lengths(cell, options, exchange):
    case = Case(7, 13, 24, lengths=LENGTHS, **options)
    check_sequence(cell, case, torch.bfloat16, *pair(cell, **DEVICES[exchange]))


@pytest.mark.parametrize("lengths", [(0,) * 13, (9, 0) * 6 + (2,)], ids=["none", "beyond-the-end"])
def test_extreme_lengths(lengths):
    case = Case(4, 13, 24, lengths=lengths, reverse=True)
    check_sequence("gru", case, torch.bfloat16, *pair("gru", **DEVICES["L2"]))


def test_rows_are_the_same_wherever_they_lie():
    """To the last bit: sums do not depend on a row's place."""
    functions = pair("lstm", **DEVICES["cluster"])
    values, (lengths, *layout) = inputs_of("lstm", Case(7, 13, 24, lengths=LENGTHS), torch.float16)
    gates_x, weight_hh, bias_hh, h_0, c_0 = values
    order = torch.randperm(13)
    moved = [gates_x[:, order], weight_hh, bias_hh, h_0[order], c_0[order]]
    results, _, _ = actual("lstm", values, [lengths, *layout], *functions)
    shuffled, _, _ = actual("lstm", moved, [lengths[order], *layout], *functions)
    for name, x in results.items():
        assert torch.equal(shuffled[name], x.index_select(x.dim() - 2, order)), name


def test_a_slice_of_short_rows_ends_early():
    """Rows in any order cost the steps that sorted rows cost, and packed ones."""

    def switches(lengths, **options):
        case = Case(16, 16, 24, **options)
        values, (_, *layout) = inputs_of("lstm", case, torch.float16)
        forward, _ = pair("lstm", **DEVICES["L2"])
        forward(*values, lengths, *layout, True)
        return library().functions.emu_switches()

    falling = torch.tensor([16] * 8 + [2] * 8)
    whole = switches(torch.full((16,), 16))
    shuffled = switches(falling[torch.randperm(16)])
    assert shuffled == switches(falling)
    assert shuffled < 0.65 * whole
    assert shuffled == pytest.approx(switches(None, batch_sizes=(16, 16) + (8,) * 14), rel=0.02)
