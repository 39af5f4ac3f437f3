"""`explain`: which backend would run each call, without running it."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import seqkernels


def test_it_names_the_backend_of_every_call():
    layer = seqkernels.GRU(5, 6, 2, bidirectional=True)
    text = seqkernels.explain(layer, torch.randn(4, 3, 5))
    assert text.count("gru: 4 steps, batch size 3") == 4
    assert text.count("It runs on native: C++ kernels") == 4


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_input(enforce_sorted):
    layer = seqkernels.LSTM(4, 5, 2, bidirectional=True)
    rows = [torch.randn(5, 4), torch.randn(3, 4)]
    packed = pack_sequence(rows if enforce_sorted else rows[::-1], enforce_sorted=enforce_sorted)
    text = seqkernels.explain(layer, packed)
    first = "lstm: 5 steps, batch size 2, input size 4, hidden size 5, float32 on cpu, training"
    assert text.count(first) == 2 and text.count("packed input") == 4
    assert text.count("lstm: 5 steps, batch size 2, input size 10") == 2


def test_packed_input_with_a_state_in_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = seqkernels.GRU(4, 5)

        def forward(self, packed, state):
            return self.layer(packed, state)

    packed = pack_sequence([torch.randn(3, 4), torch.randn(5, 4)], enforce_sorted=False)
    text = seqkernels.explain(Model(), packed, state=torch.zeros(1, 2, 5))
    assert text.startswith("gru: 5 steps, batch size 2")


def test_a_model_that_packs_says_why_it_cannot_be_explained():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = seqkernels.GRU(4, 5)

        def forward(self, x, lengths):
            return self.layer(pack_padded_sequence(x, lengths))

    with pytest.raises(RuntimeError, match="explain follows shapes alone"):
        seqkernels.explain(Model(), torch.randn(5, 2, 4), torch.tensor([5, 3]))


def test_a_named_backend_that_cannot_run_is_said():
    layer = seqkernels.GRU(4, 5)
    with seqkernels.use_backend("onednn"), pytest.raises(RuntimeError, match="LSTM alone"):
        seqkernels.explain(layer, torch.randn(3, 2, 4))
