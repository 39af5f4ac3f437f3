"""Sequences of no steps, infinities and numbers near the largest, as torch.nn computes them."""

import pytest
import torch
from pairs import onednn, state, tensors_of, trio

import seqkernels

KINDS = ("LSTM", "GRU", "RNN")


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_give_the_initial_state(kind, options):
    """torch.nn refuses them; the formulas do not."""
    layers, directions = options.get("num_layers", 1), 1 + options.get("bidirectional", False)
    layer = getattr(seqkernels, kind)(5, 6, **options)
    hx = state(kind, (3,), 6, layers=layers, directions=directions)
    hx = tuple(s.float().requires_grad_() for s in (hx if kind == "LSTM" else (hx,)))
    output, *final = tensors_of(layer(torch.zeros(0, 3, 5), hx if kind == "LSTM" else hx[0]))
    assert output.shape == (0, 3, 6 * directions)
    for found, given in zip(final, hx, strict=True):
        assert torch.equal(found, given)
        assert torch.equal(torch.autograd.grad(found.sum(), given)[0], torch.ones_like(given))
    output, *final = tensors_of(layer(torch.zeros(0, 5)))
    assert output.shape == (0, 6 * directions) and not any(s.any() for s in final)


def test_no_steps_of_a_projected_layer():
    layer = seqkernels.LSTM(5, 6, 2, proj_size=4, batch_first=True)
    output, (h, c), c_sequence = layer(torch.zeros(3, 0, 5), return_c_sequence=True)
    assert output.shape == (3, 0, 4) and c_sequence.shape == (3, 0, 6)
    assert h.shape == (2, 3, 4) and c.shape == (2, 3, 6)
    lengths, reset = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.bool)
    assert layer(torch.zeros(3, 0, 5), lengths=lengths, reset=reset)[0].shape == (3, 0, 4)


VALUES = {"+inf": torch.inf, "-inf": -torch.inf, "nan": torch.nan, "large": 3e38, "-large": -3e38}


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("where", ["input", "state"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("steps, rows", [(1, 1), (1, 3), (5, 2), (5, 24)])
@pytest.mark.parametrize("kind", [*KINDS, "relu"])
def test_extreme_values(kind, steps, rows, value, where, grad):
    options = {"nonlinearity": "relu"} if kind == "relu" else {}
    kind = "RNN" if kind == "relu" else kind
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        ours, theirs, _ = trio(kind, 5, 7, dtype=dtype, **options)
        x = torch.randn(steps, rows, 5, dtype=dtype)
        h = torch.randn(1, rows, 7, dtype=dtype) / 2
        (x[steps // 2, 0] if where == "input" else h[0, 0])[2] = value
        hx = (h, h.clone()) if kind == "LSTM" else h
        # oneDNN's own LSTM gives other NaNs than the formulas.
        with torch.set_grad_enabled(grad), onednn(False):
            wanted = tensors_of(theirs(x, hx))
        with torch.set_grad_enabled(grad):
            found = tensors_of(ours(x, hx))
        for name, one, other in zip(("output", "h_n", "c_n"), found, wanted, strict=False):
            one, other = one.detach(), other.detach()
            assert torch.equal(one.isnan(), other.isnan()), f"{name} {dtype}"
            assert torch.equal(one.isinf(), other.isinf()), f"{name} {dtype}"
            # What is left is a handful of numbers, of which the rule of norms would compare luck;
            # what could be wrong with them is of the size of a gate.
            kept = other.abs() < 1e30  # the relu of huge numbers is a difference of huge numbers
            assert torch.allclose(one[kept], other[kept], atol=4e-2, rtol=4e-2), f"{name} {dtype}"
