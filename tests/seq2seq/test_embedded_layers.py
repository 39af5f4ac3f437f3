"""A layer that projects the vocabulary once, against the same layer on the embedded symbols."""

import pytest
import torch
from tolerance import assert_parity
from torch import nn

from seqkernels import GRU, LSTM, RNN, use_backend
from seqkernels.seq2seq import Encoder, layers
from seqkernels.seq2seq.layers import run, run_embedded

KINDS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
VOCABULARY, WIDTH, HIDDEN = 9, 12, 20


@pytest.fixture
def projected(monkeypatch):
    """How often the vocabulary was projected instead of the input."""
    calls = []

    def counting(apply):
        return lambda *arguments: calls.append(1) or apply(*arguments)

    counted = {cell: counting(apply) for cell, apply in layers.EMBEDDED.items()}
    monkeypatch.setattr(layers, "EMBEDDED", counted)
    return calls


def make(kind: str, **options) -> tuple[nn.Module, nn.Embedding, torch.Tensor]:
    torch.manual_seed(3)
    layer = KINDS[kind](WIDTH, HIDDEN, **options)
    embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
    return layer, embedding, torch.randint(0, VOCABULARY, (11, 5))


def results(function, layer, embedding, tokens, state, lengths):
    """Outputs, final states and the gradients of everything that has one."""
    own = None if state is None else tuple(s.clone().requires_grad_() for s in state)
    output, final = function(layer, embedding, tokens, own, lengths)
    torch.manual_seed(4)
    loss = sum((y * torch.randn(y.shape, dtype=torch.float64).to(y.dtype)).sum()
               for y in (output, *final))  # fmt: skip
    named = [*layer.named_parameters(), ("embedding", embedding.weight)]
    named += [(f"state {i}", s) for i, s in enumerate(own or ())]
    grads = torch.autograd.grad(loss, [value for _, value in named])
    found = {"output": output} | {f"final {i}": s for i, s in enumerate(final)}
    return found | {name: grad for (name, _), grad in zip(named, grads, strict=True)}


def by_table(layer, embedding, tokens, state, lengths):
    return run_embedded(layer, embedding, nn.Dropout(0.0), tokens, state, lengths)


def by_input(layer, embedding, tokens, state, lengths):
    return run(layer, embedding(tokens), state, lengths)


@pytest.mark.parametrize("lengths", [None, (11, 1, 7, 4, 11)], ids=["whole", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("given", [False, True], ids=["zero", "state"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_embedded_input(
    kind, given, bias, bidirectional, lengths, projected
):
    layer, embedding, tokens = make(kind, bias=bias, bidirectional=bidirectional)
    state = None
    if given:
        state = (torch.randn(1 + bidirectional, 5, HIDDEN),) * (2 if kind == "lstm" else 1)
    lengths = None if lengths is None else torch.tensor(lengths)
    found = results(by_table, layer, embedding, tokens, state, lengths)
    assert len(projected) == 1 + bidirectional
    ordinary = results(by_input, layer, embedding, tokens, state, lengths)
    assert len(projected) == 1 + bidirectional
    wide = (layer.double(), embedding.double(), tokens)
    state = None if state is None else tuple(s.double() for s in state)
    exact = results(by_input, *wide, state, lengths)
    assert found.keys() == exact.keys()
    for name in exact:
        assert_parity(found[name], ordinary[name], exact[name], name)


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_in_double(kind, projected):
    torch.manual_seed(5)
    model = nn.ModuleDict({"layer": KINDS[kind](3, 2), "embedding": nn.Embedding(4, 3)}).double()
    tokens = torch.randint(0, 4, (4, 3))
    model.forward = lambda: by_table(model["layer"], model["embedding"], tokens, None, None)[0]
    names, values = zip(*model.named_parameters(), strict=True)

    def function(*changed):
        return torch.func.functional_call(model, dict(zip(names, changed, strict=True)), ())

    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)
    assert projected


def test_an_update_gate_that_replaces_the_state(projected):
    layer, embedding, tokens = make("gru", update="replace")
    module = (layer.double(), embedding.double(), tokens, None, None)
    found, expected = (results(way, *module) for way in (by_table, by_input))
    assert projected
    for name in expected:
        assert_parity(found[name], None, expected[name], name)


def test_the_padding_symbol_learns_nothing():
    layer, embedding, tokens = make("lstm")
    output, _ = by_table(layer, embedding, tokens, None, None)
    assert (tokens == 0).any()
    output.sum().backward()
    assert not embedding.weight.grad[0].any()
    assert embedding.weight.grad[1:].abs().amin(0).any()


@pytest.mark.parametrize(
    "change",
    ["dropout", "hook", "no gradient", "few places", "named backend", "two layers", "autocast"],
)
def test_other_calls_go_the_ordinary_way(change, projected):
    layer, embedding, tokens = make("gru", num_layers=2 if change == "two layers" else 1)
    dropout = nn.Dropout(0.5 if change == "dropout" else 0.0)
    seen = []
    if change == "hook":
        embedding.register_forward_hook(lambda *_: seen.append(1))
    if change == "few places":
        tokens = tokens[:1, :5]
    with torch.set_grad_enabled(change != "no gradient"):
        if change == "named backend":
            with use_backend("reference"):
                run_embedded(layer, embedding, dropout, tokens)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
                run_embedded(layer, embedding, dropout, tokens)
    assert not projected
    assert bool(seen) == (change == "hook")


def test_a_state_that_does_not_fit_is_refused_as_ever(projected):
    layer, embedding, tokens = make("gru", bidirectional=True)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(2, 5, 20\)"):
        by_table(layer, embedding, tokens, (torch.zeros(1, 5, HIDDEN),), None)
    assert not projected


def test_the_encoder_projects_its_vocabulary_in_training_alone(projected):
    encoder = Encoder(VOCABULARY, WIDTH, HIDDEN, dropout=0.5, embedding_dropout=0.0)
    tokens = torch.randint(1, VOCABULARY, (11, 5))
    encoder(tokens)
    assert len(projected) == 1
    with torch.no_grad():
        encoder(tokens)
    assert len(projected) == 1
