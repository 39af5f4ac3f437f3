"""The sequence op that takes its gates from a table: bits, threads, refusals, fakes."""

import re

import pytest
import torch
from cpu_cases import Case, make_inputs, op

from seqkernels.cells import CELLS

V, T, N, H = 7, 6, 5, 19
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def arguments(name, dtype, lengths=None):
    """(gates, symbols, weight_hh, bias_hh, h_0, c_0, lengths)."""
    inputs = make_inputs(name, Case(T, N, H), dtype)
    gates = torch.randn(V, CELLS[name].gates * H).to(dtype)
    symbols = torch.randint(0, V, (T, N))
    states = (inputs[key] for key in ("weight_hh", "bias_hh", "h_0", "c_0"))
    return (gates, symbols, *states, lengths)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, (6, 0, 3, 6, 1)], ids=["whole", "lengths"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_it_is_the_sequence_of_the_gathered_gates(name, dtype, lengths, reverse):
    lengths = None if lengths is None else torch.tensor(lengths)
    gates, symbols, *rest = arguments(name, dtype, lengths)
    found = op(f"{name}_lookup")(gates, symbols, *rest, reverse)
    expected = op(f"{name}_sequence")(gates[symbols], *rest, None, None, reverse, True)
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)


def test_a_transposed_table_of_symbols_and_of_gates():
    gates, symbols, *rest = arguments("lstm", torch.float32)
    expected = op("lstm_lookup")(gates, symbols, *rest, False)
    turned = gates.t().contiguous().t(), symbols.t().contiguous().t()
    for own, other in zip(op("lstm_lookup")(*turned, *rest, False), expected, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(V, 4 * H + 1), "expected gates of size [7, 76], got [7, 77]"),
        (0, torch.zeros(4 * H), "expected gates of size [76, 76], got [76]"),
        (1, torch.zeros(T, N, 1).long(), "expected symbols of 2 dimensions, got [6, 5, 1]"),
        (1, torch.zeros(T, 4).long(), "expected symbols of size [6, 5], got [6, 4]"),
        (1, torch.zeros(T, N).int(), "symbols must be int64"),
        (1, torch.full((T, N), V), "symbols must lie between 0 and 6, the rows of gates, got 7"),
        (1, torch.full((T, N), -1), "symbols must lie between 0 and 6, the rows of gates, got -1"),
        (6, torch.tensor([1, 2]), "expected lengths of size [5], got [2]"),
    ],
)
def test_refusals_name_the_sizes(place, value, message):
    values = list(arguments("lstm", torch.float32))
    values[place] = value
    with pytest.raises(RuntimeError, match=re.escape(f"lstm_lookup: {message}")):
        op("lstm_lookup")(*values, False)


@pytest.mark.parametrize("name", CELLS)
def test_opcheck(name):
    values = arguments(name, torch.float32, torch.tensor([6, 0, 3, 6, 1]))
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op(f"{name}_lookup"), (*values, True), test_utils=utils)


def test_it_has_no_derivative_of_its_own():
    gates, *rest = arguments("lstm", torch.float32)
    output, *_ = op("lstm_lookup")(gates.requires_grad_(), *rest, False)
    with pytest.raises(RuntimeError, match="lstm_lookup has no derivative"):
        output.sum().backward()
