"""Dropout between layers: torch's own random numbers, so equal seeds give equal results."""

import copy

import pytest
import torch
from pairs import DTYPES, trio
from tolerance import assert_parity
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import seqkernels

KINDS = ("LSTM", "GRU", "RNN")


def _seeded(module, *args):
    torch.manual_seed(7)
    return module(*args)[0]


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_torchs_numbers(kind, bidirectional, batch_first):
    ours, theirs, _ = trio(
        kind, 5, 6, 3, dropout=0.4, bidirectional=bidirectional, batch_first=batch_first
    )
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    output, expected = _seeded(ours, x), _seeded(theirs, x)
    assert_parity(output, None, expected, "output")
    assert not torch.equal(output, ours(x)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_masks_in_every_dtype(dtype):
    """relu units of weight one pass on what the mask leaves, exactly."""
    ours, theirs, _ = trio("RNN", 4, 64, 2, "relu", False, dropout=0.5, dtype=dtype)
    for module in (ours, theirs):
        nn.init.eye_(module.weight_ih_l0)
        nn.init.eye_(module.weight_ih_l1)
        nn.init.zeros_(module.weight_hh_l0)
        nn.init.zeros_(module.weight_hh_l1)
    x = torch.ones(5, 3, 4, dtype=dtype)
    output, expected = _seeded(ours, x), _seeded(theirs, x)
    assert torch.equal(output, expected)
    assert set(output.unique().tolist()) == {0, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_of_packed_sequences(kind):
    ours, theirs, _ = trio(kind, 5, 6, 2, dropout=0.4)
    packed = pack_sequence([torch.randn(n, 5, dtype=torch.float64) for n in (4, 2, 1)])
    output, expected = _seeded(ours, packed), _seeded(theirs, packed)
    assert isinstance(output, PackedSequence)
    assert_parity(output.data, None, expected.data, "output")


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_scaling(p, training):
    """A relu RNN full of ones reads the scale of what dropout leaves, as torch's own test does."""
    rnn = seqkernels.RNN(10, 1000, 2, "relu", bias=False, dropout=p).train(training)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.fill_(1)
        output, _ = rnn(torch.ones(1, 1, 10))
    kept = 1.0 if not training else 1 - p
    scale = 0.0 if kept == 0 else 1 / kept
    found = (output / (1000 * 10)).unique()
    assert len(found) == 1
    # The mean of 1000 masks of mean `kept` times `scale`: within six standard deviations.
    spread = 6 * scale * (kept * (1 - kept) / 1000) ** 0.5
    assert abs(found.item() - kept * scale) <= spread + 1e-6


def test_changed_dropout_holds_for_the_next_call():
    rnn = seqkernels.GRU(5, 6, 2, dropout=0.5)
    x = torch.randn(4, 3, 5)
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    rnn.dropout = 0
    assert torch.equal(rnn(x)[0], rnn(x)[0])
    rnn.dropout = 1
    lower_bias_only, _ = rnn(x)
    assert torch.equal(lower_bias_only, rnn(x + 1)[0])


def test_last_layer_is_not_dropped():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        rnn = seqkernels.LSTM(5, 6, dropout=0.9)
    x = torch.randn(4, 3, 5)
    assert torch.equal(rnn(x)[0], copy.deepcopy(rnn)(x)[0])
