"""Errors of the layers: torch.nn's exception for every wrong argument, with the sizes in it."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import seqkernels

KINDS = ("LSTM", "GRU", "RNN")
kinds = pytest.mark.parametrize("kind", KINDS)


def _failure(call):
    """The exception of a call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return error
    raise AssertionError("the call did not raise")


def _pair(kind, *args, **keywords):
    return getattr(seqkernels, kind)(*args, **keywords), getattr(nn, kind)(*args, **keywords)


def _hx(kind, h, c=None):
    return (h, h if c is None else c) if kind == "LSTM" else h


CONSTRUCTIONS = {
    "input_size zero": ((0, 5), {}),
    "input_size negative": ((-1, 5), {}),
    "input_size float": ((3.0, 5), {}),
    "hidden_size zero": ((3, 0), {}),
    "hidden_size float": ((3, 5.0), {}),
    "hidden_size None": ((3, None), {}),
    "num_layers zero": ((3, 5, 0), {}),
    "num_layers float": ((3, 5, 1.5), {}),
    "bias int": ((3, 5), {"bias": 1}),
    "batch_first int": ((3, 5), {"batch_first": 1}),
    "batch_first string": ((3, 5), {"batch_first": "yes"}),
    "dropout above one": ((3, 5), {"dropout": 2}),
    "dropout negative": ((3, 5), {"dropout": -0.5}),
    "dropout bool": ((3, 5), {"dropout": True}),
    "dropout string": ((3, 5), {"dropout": "a"}),
    "dtype integer": ((3, 5), {"dtype": torch.int64}),
    "device unknown": ((3, 5), {"device": "nowhere"}),
    "keyword unknown": ((3, 5), {"layers": 2}),
    "no sizes": ((), {}),
    "one size": ((3,), {}),
}


@kinds
@pytest.mark.parametrize("args, keywords", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS.keys())
def test_construction(kind, args, keywords):
    found = _failure(lambda: getattr(seqkernels, kind)(*args, **keywords))
    expected = _failure(lambda: getattr(nn, kind)(*args, **keywords))
    assert type(found) is type(expected)
    if not isinstance(found, TypeError) or "should be" in str(expected):
        assert str(found) == str(expected)


@pytest.mark.parametrize("proj_size", [-1, 5, 6, 2.5])
def test_projection_size(proj_size):
    found = _failure(lambda: seqkernels.LSTM(3, 5, proj_size=proj_size))
    expected = _failure(lambda: nn.LSTM(3, 5, proj_size=proj_size))
    assert type(found) is type(expected) and str(found) == str(expected)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_projection_of_other_cells(kind, proj_size):
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        getattr(seqkernels, kind)(3, 5, proj_size=proj_size)


def test_nonlinearity():
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sigmoid'"):
        seqkernels.RNN(3, 5, nonlinearity="sigmoid")
    assert seqkernels.RNN(3, 5, 1, "relu").mode == nn.RNN(3, 5, 1, "relu").mode


@pytest.mark.parametrize("build", [seqkernels.GRU, seqkernels.GRUCell])
def test_reset_argument(build):
    with pytest.raises(ValueError, match="Unknown reset 'later'"):
        build(3, 5, reset="later")


INPUTS = {
    "1-D": torch.zeros(3),
    "4-D": torch.zeros(2, 4, 2, 3),
    "features": torch.zeros(4, 2, 7),
    "features unbatched": torch.zeros(4, 7),
    "float64": torch.zeros(4, 2, 3, dtype=torch.float64),
    "int64": torch.zeros(4, 2, 3, dtype=torch.int64),
    "meta": torch.zeros(4, 2, 3, device="meta"),
}


@kinds
@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS.keys())
def test_input(kind, x):
    ours, theirs = _pair(kind, 3, 5)
    found, expected = _failure(lambda: ours(x)), _failure(lambda: theirs(x))
    assert type(found) is type(expected)
    # torch.nn.RNN alone says "got 1D tensor instead".
    assert str(expected).replace("D tensor instead", "D instead") in str(found)


STATES = {
    "batch": torch.zeros(1, 3, 5),
    "batch of one": torch.zeros(1, 1, 5),
    "layers": torch.zeros(2, 2, 5),
    "features": torch.zeros(1, 2, 4),
    "2-D": torch.zeros(2, 5),
    "4-D": torch.zeros(1, 1, 2, 5),
    "meta": torch.zeros(1, 2, 5, device="meta"),
}


@kinds
@pytest.mark.parametrize("h", STATES.values(), ids=STATES.keys())
def test_state(kind, h):
    ours, theirs = _pair(kind, 3, 5)
    x, hx = torch.zeros(4, 2, 3), _hx(kind, h)
    found, expected = _failure(lambda: ours(x, hx)), _failure(lambda: theirs(x, hx))
    assert type(found) is type(expected) and str(found) == str(expected)


@kinds
def test_state_of_another_dtype(kind):
    """torch refuses it too, in words that differ from layer to layer."""
    ours, theirs = _pair(kind, 3, 5)
    x, hx = torch.zeros(4, 2, 3), _hx(kind, torch.zeros(1, 2, 5, dtype=torch.float64))
    assert type(_failure(lambda: theirs(x, hx))) is RuntimeError
    with pytest.raises(RuntimeError, match="not of the same dtype.*float32.*float64"):
        ours(x, hx)


@kinds
def test_batched_state_of_unbatched_input(kind):
    ours, theirs = _pair(kind, 3, 5)
    x, hx = torch.zeros(4, 3), _hx(kind, torch.zeros(1, 1, 5))
    found, expected = _failure(lambda: ours(x, hx)), _failure(lambda: theirs(x, hx))
    assert type(found) is type(expected) and str(found) == str(expected)


CELL_STATES = {
    "batch": torch.zeros(1, 3, 5),
    "features": torch.zeros(1, 2, 4),
    "2-D": torch.zeros(2, 5),
}


@pytest.mark.parametrize("c", CELL_STATES.values(), ids=CELL_STATES.keys())
def test_cell_state(c):
    ours, theirs = _pair("LSTM", 3, 5)
    x, hx = torch.zeros(4, 2, 3), (torch.zeros(1, 2, 5), c)
    found, expected = _failure(lambda: ours(x, hx)), _failure(lambda: theirs(x, hx))
    assert type(found) is type(expected) and str(found) == str(expected)


@pytest.mark.parametrize("shape", [(1, 2, 5), (1, 3, 2), (2, 2, 2)])
def test_projected_state(shape):
    ours, theirs = _pair("LSTM", 3, 5, proj_size=2)
    x, hx = torch.zeros(4, 2, 3), (torch.zeros(shape), torch.zeros(1, 2, 5))
    found, expected = _failure(lambda: ours(x, hx)), _failure(lambda: theirs(x, hx))
    assert type(found) is type(expected) and str(found) == str(expected)


def test_state_is_not_a_pair():
    lstm, h = seqkernels.LSTM(3, 5), torch.zeros(1, 2, 5)
    x = torch.zeros(4, 2, 3)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states, got 3"):
        lstm(x, (h, h, h))
    with pytest.raises(RuntimeError, match="lstm expects two hidden states, got 1"):
        lstm(x, (h,))
    with pytest.raises(TypeError, match="must be a tuple"):
        lstm(x, h)


@kinds
def test_input_is_not_a_tensor(kind):
    ours, theirs = _pair(kind, 3, 5)
    for x in (None, [[1.0, 2.0, 3.0]]):
        found, expected = _failure(lambda x=x: ours(x)), _failure(lambda x=x: theirs(x))
        assert type(found) is type(expected)


@kinds
@pytest.mark.parametrize("rows", [1, 3])
def test_packed_state(kind, rows):
    """torch's LSTM says here what its kernels notice first; ours says what its GRU says."""
    ours, theirs = _pair(kind, 3, 5)
    x = pack_sequence([torch.zeros(3, 3), torch.zeros(2, 3)])
    hx = _hx(kind, torch.zeros(1, rows, 5))
    assert type(_failure(lambda: theirs(x, hx))) is RuntimeError
    with pytest.raises(RuntimeError, match=rf"size \(1, 2, 5\), got \[1, {rows}, 5\]"):
        ours(x, hx)


@kinds
def test_packed_input(kind):
    ours, theirs = _pair(kind, 3, 5)
    wrong_size = pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
    with pytest.raises(RuntimeError, match="Expected 3, got 4"):
        ours(wrong_size)
    three_dims = PackedSequence(torch.zeros(5, 2, 3), torch.tensor([3, 2]))
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        ours(three_dims)
    empty = PackedSequence(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert type(_failure(lambda: ours(empty))) is type(_failure(lambda: theirs(empty)))
    for x in (wrong_size, three_dims):
        assert type(_failure(lambda x=x: theirs(x))) is RuntimeError


LENGTHS = {
    "list": ([3, 4], TypeError, "must be a Tensor, not list"),
    "float": (torch.tensor([3.0, 4.0]), TypeError, "int64 or int32, got torch.float32"),
    "rows": (torch.tensor([3, 4, 1]), RuntimeError, r"size \(2,\), got \[3\]"),
    "2-D": (torch.tensor([[3, 4]]), RuntimeError, r"size \(2,\), got \[1, 2\]"),
    "meta": (torch.zeros(2, dtype=torch.int64, device="meta"), RuntimeError, "same device"),
}


@kinds
@pytest.mark.parametrize("lengths, error, match", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths(kind, lengths, error, match):
    layer = getattr(seqkernels, kind)(3, 5)
    with pytest.raises(error, match=match):
        layer(torch.zeros(4, 2, 3), lengths=lengths)


RESETS = {
    "list": ([[True]], TypeError, "must be a Tensor, not list"),
    "float": (torch.zeros(4, 2), TypeError, "must be bool, got torch.float32"),
    "steps": (torch.zeros(3, 2, dtype=torch.bool), RuntimeError, r"\(4, 2\), got \[3, 2\]"),
    "layout": (torch.zeros(2, 4, dtype=torch.bool), RuntimeError, r"\(4, 2\), got \[2, 4\]"),
    "meta": (torch.zeros(4, 2, dtype=torch.bool, device="meta"), RuntimeError, "same device"),
}


@kinds
@pytest.mark.parametrize("reset, error, match", RESETS.values(), ids=RESETS.keys())
def test_reset(kind, reset, error, match):
    layer = getattr(seqkernels, kind)(3, 5)
    with pytest.raises(error, match=match):
        layer(torch.zeros(4, 2, 3), reset=reset)


@kinds
def test_lengths_and_reset_go_with_padded_batches(kind):
    layer = getattr(seqkernels, kind)(3, 5)
    packed = pack_sequence([torch.zeros(3, 3), torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="lengths goes with a padded input"):
        layer(packed, lengths=torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="reset goes with a padded input"):
        layer(packed, reset=torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="batched 3-D input"):
        layer(torch.zeros(4, 3), lengths=torch.tensor([3]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_dtype_without_kernels(dtype):
    """The layers raise for it what torch's do; nothing reaches a kernel."""
    for kind in KINDS:
        ours, theirs = _pair(kind, 3, 5)
        x = torch.zeros(4, 2, 3, dtype=dtype)
        raised = [type(_failure(lambda m=m, x=x: m(x))) for m in (ours, theirs)]
        assert raised[0] is raised[1]


def test_unknown_backend():
    with pytest.raises(ValueError, match="unknown backend 'fastest'"):
        seqkernels.use_backend("fastest")


@pytest.mark.parametrize("backend", [None, "native", "reference"])
@pytest.mark.parametrize("steps", [4, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_refuses_lengths_beyond_the_steps(kind, steps, backend):
    layer, x = getattr(seqkernels, kind)(3, 5), torch.zeros(steps, 2, 3)
    for wrong in (steps + 1, -1):
        with seqkernels.use_backend(backend), pytest.raises(RuntimeError, match=f"got {wrong} for"):
            layer(x, lengths=torch.tensor([0, wrong]))
