"""Errors of the cells: torch.nn's exception for every wrong argument, with the sizes in it."""

import pytest
import torch
from torch import nn

import seqkernels

KINDS = ("LSTMCell", "GRUCell", "RNNCell")
kinds = pytest.mark.parametrize("kind", KINDS)


def _failures(kind, x, h, c=None):
    """Ours and torch's exceptions for a cell of input size 3 and hidden size 5."""
    found = []
    for module in (getattr(seqkernels, kind)(3, 5), getattr(nn, kind)(3, 5)):
        hx = h
        if h is not None and kind == "LSTMCell":
            hx = (h, h if c is None else c)
        with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError)) as failure:
            module(x, hx)
        found.append(failure.value)
    return found


ARGUMENTS = {
    "features": (torch.zeros(2, 4), None),
    "features unbatched": (torch.zeros(4), None),
    "input 0-D": (torch.zeros(()), None),
    "input 3-D": (torch.zeros(1, 2, 3), None),
    "hidden features": (torch.zeros(2, 3), torch.zeros(2, 4)),
    "batch": (torch.zeros(2, 3), torch.zeros(3, 5)),
    # A state of one row is not broadcast.
    "hidden of one row": (torch.zeros(2, 3), torch.zeros(1, 5)),
    "input of one row": (torch.zeros(1, 3), torch.zeros(2, 5)),
    "hidden 3-D": (torch.zeros(2, 3), torch.zeros(1, 2, 5)),
    "hidden 1-D": (torch.zeros(2, 3), torch.zeros(5)),
}


@kinds
@pytest.mark.parametrize("x, h", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_sizes(kind, x, h):
    found, expected = _failures(kind, x, h)
    assert type(found) is type(expected)
    assert str(found).startswith(str(expected))


@kinds
def test_batched_state_of_unbatched_input(kind):
    found, expected = _failures(kind, torch.zeros(3), torch.zeros(1, 5))
    assert type(found) is type(expected) is RuntimeError
    assert "hidden0" in str(found) and "[1, 1, 5]" in str(found)


@kinds
def test_dtypes(kind):
    for x, h in (
        (torch.zeros(2, 3, dtype=torch.float64), None),
        (torch.zeros(2, 3), torch.zeros(2, 5, dtype=torch.float64)),
        (torch.zeros(2, 3, dtype=torch.int64), None),
    ):
        found, expected = _failures(kind, x, h)
        assert type(found) is type(expected)
        assert "must have the same dtype" in str(found)


@kinds
def test_devices(kind):
    for x, h in (
        (torch.zeros(2, 3, device="meta"), None),
        (torch.zeros(2, 3), torch.zeros(2, 5, device="meta")),
    ):
        found, expected = _failures(kind, x, h)
        assert type(found) is type(expected)
        assert "meta" in str(found) and "cpu" in str(found)


@pytest.mark.parametrize("c", [torch.zeros(2, 4), torch.zeros(3, 5)], ids=["features", "batch"])
def test_cell_state(c):
    found, expected = _failures("LSTMCell", torch.zeros(2, 3), torch.zeros(2, 5), c)
    assert type(found) is type(expected)
    assert str(found).startswith(str(expected))


def test_state_is_not_a_pair():
    cell, h = seqkernels.LSTMCell(3, 5), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states, got 1"):
        cell(torch.zeros(2, 3), (h,))
    with pytest.raises(TypeError, match="must be a tuple"):
        cell(torch.zeros(2, 3), h)


def test_nonlinearity():
    for module in (seqkernels, nn):
        cell = module.RNNCell(3, 5, nonlinearity="sigmoid")
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: sigmoid"):
            cell(torch.zeros(2, 3))


@kinds
def test_construction(kind):
    for args in ((3,), (), (3, 5, True, "tanh", None, None, None)):
        for module in (seqkernels, nn):
            with pytest.raises(TypeError):
                getattr(module, kind)(*args)
    for module in (seqkernels, nn):
        with pytest.raises(RuntimeError, match="negative dimension"):
            getattr(module, kind)(3, -5)
