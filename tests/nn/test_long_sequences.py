"""A thousand steps: errors may grow no faster than torch's."""

import pytest
import torch
from pairs import DTYPES, assert_same, state, trio


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_thousand_steps(kind, dtype):
    x = torch.randn(1000, 4, 8, dtype=torch.float64)
    assert_same(trio(kind, 8, 16, dtype=dtype), x, state(kind, (4,), 16))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_thousand_steps_with_lengths(kind):
    layer, _, exact = trio(kind, 8, 16, dtype=torch.float32, bidirectional=True)
    x = torch.randn(1000, 3, 8)
    output, _ = layer(x, lengths=torch.tensor([1000, 1, 700]))
    expected, _ = exact(x[:700, 2:].double())
    assert (output[:700, 2:] - expected).abs().max() < 1e-5
    assert not output[1:, 1].any() and not output[700:, 2].any()
