"""Autocast: float32 parameters and inputs, recurrence in bfloat16 or float16."""

import pytest
import torch
from pairs import run, state, trio
from tolerance import FLOOR, relative_error

import seqkernels

KINDS = ("LSTM", "GRU", "RNN")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, dtype):
    """Results have autocast's dtype, gradients that of their leaf, and errors stay within twice
    those of a torch layer that is in the low precision throughout.
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
        assert value.dtype == (dtype if name.startswith("result") else torch.float32), name
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
