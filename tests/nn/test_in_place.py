"""Results changed in place before the backward: allowed and right wherever torch.nn allows it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import tensors_of, trio
from tolerance import assert_parity
from torch import nn

import seqkernels

STEPS, ROWS, INPUT, HIDDEN = 4, 3, 5, 6
CHANGES = {
    "zero the first row": lambda t: t[0].zero_(),
    "assign a slice": lambda t: t.__setitem__((..., slice(0, 2)), 0.5),
    "relu_": lambda t: t.relu_(),
    "mul_": lambda t: t.mul_(2.0),
    "masked_fill_": lambda t: t.masked_fill_(t > 0, 0.0),
    "through detach": lambda t: t.detach().zero_(),
    "clamp_ of a view": lambda t: t.view(-1).clamp_(-0.1, 0.1),
}
LAYERS = {
    "one": {},
    "stacked": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
}


def _outcome(module, x, which, change):
    """Gradients after a change of result number `which`, or the error that refuses it."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    results = tensors_of(module(x))
    try:
        change(results[which])
        sum((r * (i + 1)).square().sum() for i, r in enumerate(results)).backward()
    except RuntimeError as error:
        return str(error)
    return [x.grad, *(p.grad for p in module.parameters())]


def assert_as_torch(kind, options, dtype, which, change):
    modules = trio(kind, INPUT, HIDDEN, dtype=dtype, **options)
    shape = (ROWS, INPUT) if kind.endswith("Cell") else (STEPS, ROWS, INPUT)
    x = torch.randn(shape, dtype=torch.float64)
    ours, theirs = (_outcome(m, x.to(dtype), which, change) for m in modules[:2])
    if isinstance(theirs, str):
        assert isinstance(ours, str) and "modified by an inplace operation" in ours
        return
    assert not isinstance(ours, str), ours
    exact = _outcome(modules.exact, x, which, change)
    if isinstance(exact, str):
        return
    for index, (one, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(one, other, truth, f"gradient {index}")


# Of a change by sign the float32 and the float64 runs may take different branches: exact ones only.
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("kind, which", [("LSTM", 0), ("LSTM", 2), ("GRU", 0), ("RNN", 0)])
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_every_change(kind, which, cell, change):
    if cell and which == 2:
        which = 1
    assert_as_torch(kind + ("Cell" if cell else ""), {}, torch.float64, which, change)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN"]),
    options=st.sampled_from(sorted(LAYERS)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    which=st.integers(0, 2),
    change=st.sampled_from(["zero the first row", "assign a slice", "mul_", "through detach"]),
)
def test_layers_as_torch(kind, options, dtype, which, change):
    which = min(which, 2 if kind == "LSTM" else 1)
    assert_as_torch(kind, LAYERS[options], dtype, which, CHANGES[change])


def test_a_state_set_to_zero_between_steps():
    """As an agent does at the end of an episode."""
    for kind in ("LSTMCell", "GRUCell"):
        ours, theirs, _ = trio(kind, INPUT, HIDDEN)
        xs, done = torch.randn(STEPS, ROWS, INPUT, dtype=torch.float64), torch.tensor([0, 2])
        grads = []
        for module in (ours, theirs):
            state = None
            for x in xs:
                state = module(x, state)
                for s in state if isinstance(state, tuple) else (state,):
                    s[done] = 0
            loss = sum(s.square().sum() for s in (state if isinstance(state, tuple) else (state,)))
            loss.backward()
            grads.append([p.grad for p in module.parameters()])
        for one, other in zip(*grads, strict=True):
            assert_parity(one, None, other, "gradient")


def test_backward_twice_after_a_change():
    layer = seqkernels.GRU(INPUT, HIDDEN)
    x = torch.randn(STEPS, ROWS, INPUT)
    wanted = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    output = layer(x)[0]
    loss = output.sum()
    output.detach().zero_()
    for _ in range(2):
        found = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_memory_is_shared_until_a_change():
    """No copy of the output is made where nobody changes it, nor by what commonly follows."""
    layer, head = seqkernels.GRU(INPUT, HIDDEN), nn.Linear(HIDDEN, 2)
    output = layer(torch.randn(STEPS, ROWS, INPUT))[0]
    assert torch._C._is_cow_tensor(output)
    head(output).sum().backward()
    assert torch._C._is_cow_tensor(output)
    output.detach().add_(1)
    assert not torch._C._is_cow_tensor(output)
