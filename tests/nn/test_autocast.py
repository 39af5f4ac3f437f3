"""Autocast: float32 parameters and inputs, recurrence in bfloat16 or float16."""

import warnings

import pytest
import torch
from pairs import onednn, run, state, tensors_of, trio
from tolerance import FLOOR, relative_error
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map

import seqkernels

KINDS = ("LSTM", "GRU", "RNN")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, dtype):
    """Results have the dtype of torch's layer, gradients that of their leaf, and errors stay within
    twice those of a torch layer that is in the low precision throughout.
    """
    ours, _, exact = trio(kind, 6, 20, 2, dtype=torch.float32, bidirectional=True)
    _, low, _ = trio(kind, 6, 20, 2, dtype=dtype, bidirectional=True)
    low.load_state_dict(ours.state_dict())
    x = torch.randn(9, 5, 6)
    hx = state(kind, (5,), 20, layers=2, directions=2)
    with torch.autocast("cpu", dtype):
        found = run(ours, torch.float32, (x, hx))
    expected = run(exact, torch.float64, (x, hx))
    theirs = run(low, dtype, (x, hx))
    for name, value in found.items():
        result = torch.float32 if kind == "GRU" else dtype
        assert value.dtype == (result if name.startswith("result") else torch.float32), name
        limit = 2 * relative_error(theirs[name], expected[name]) + FLOOR[dtype]
        assert relative_error(value, expected[name]) <= limit, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind, dtype):
    ours, _, exact = trio(kind, 6, 20, dtype=torch.float32)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", dtype):
        found = run(ours, torch.float32, (x, None))
    for name, expected in run(exact, torch.float64, (x, None)).items():
        # A single step in low precision: a few roundings.
        assert relative_error(found[name], expected) <= 4 * FLOOR[dtype], name


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_arguments(kind):
    """Under autocast the input need not have the parameters' dtype, nor the state the input's."""
    layer = getattr(seqkernels, kind)(6, 8)
    hx = state(kind, (3,), 8)
    hx = tuple(s.bfloat16() for s in hx) if kind == "LSTM" else hx.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            output, _ = layer(torch.randn(4, 3, 6).to(dtype), hx)
            assert output.dtype == torch.bfloat16


def _packed(x):
    return pack_padded_sequence(x, [4, 2, 1])


@pytest.mark.parametrize("enabled", [True, False], ids=["oneDNN", "no oneDNN"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_dtypes_are_those_of_torch(kind, given, grad, enabled):
    """Of every result, for states of several dtypes, padded and packed, as torch.nn's."""
    cell = kind.endswith("Cell")
    wide = torch.float64 if given == torch.float64 else torch.float32
    options = [{}] if cell else [{}, {"num_layers": 2, "bidirectional": True}]
    if kind == "LSTM":
        options.append({"proj_size": 3})
    for option in options:
        ours, theirs, _ = trio(kind, 6, 8, dtype=wide, **option)
        sizes = {"layers": option.get("num_layers", 1)}
        sizes["directions"] = 2 if option.get("bidirectional") else 1
        hx = state(
            kind.removesuffix("Cell"), (3,), 8, **sizes, proj_size=option.get("proj_size", 0)
        )
        hx = tree_map(lambda s: (s[0] if cell else s).to(given or wide), hx)
        x = torch.randn(3, 6, dtype=wide) if cell else torch.randn(4, 3, 6, dtype=wide)
        for value in [x] if cell else [x, _packed(x)]:
            with (
                torch.autocast("cpu", torch.bfloat16),
                torch.set_grad_enabled(grad),
                onednn(enabled),
                warnings.catch_warnings(),
            ):
                try:
                    warnings.simplefilter("ignore")  # of an LSTM with projection, without oneDNN
                    wanted = tensors_of(theirs(value, None if given is None else hx))
                except RuntimeError:  # torch's kernels do not take every mixture
                    continue
                found = tensors_of(ours(value, None if given is None else hx))
            assert [t.dtype for t in found] == [t.dtype for t in wanted], (option, type(value))


def test_a_state_moves_on_in_its_own_precision():
    """Many steps of a slow GRUCell: what a step adds must not be lost to bfloat16's few bits."""
    cell = seqkernels.GRUCell(4, 8)
    with torch.no_grad():
        cell.bias_ih[8:16] = 8.0  # z near 1: a step moves the state by some ten-thousandths
        h = exact = torch.ones(2, 8)
        double = seqkernels.GRUCell(4, 8, dtype=torch.float64)
        double.load_state_dict(cell.state_dict())
        exact = exact.double()
        for x in torch.randn(400, 2, 4):
            with torch.autocast("cpu", torch.bfloat16):
                h = cell(x, h)
            exact = double(x.double(), exact)
    assert h.dtype == torch.float32
    assert relative_error(h, exact) < 2e-3


def test_variable_length_and_projection():
    layer = seqkernels.LSTM(6, 8, proj_size=3, bidirectional=True)
    x, lengths = torch.randn(5, 3, 6), torch.tensor([5, 2, 1])
    hx = tuple(s.float() for s in state("LSTM", (3,), 8, directions=2, proj_size=3))
    expected, _ = layer(x, hx, lengths=lengths)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x, hx, lengths=lengths)
    assert output.dtype == torch.bfloat16
    assert relative_error(output, expected) <= 4 * FLOOR[torch.bfloat16]


def test_outside_autocast_nothing_is_cast():
    layer = seqkernels.GRU(6, 8)
    with torch.autocast("cpu", enabled=False):
        assert layer(torch.randn(4, 3, 6))[0].dtype == torch.float32
