"""The steps that are captured as a CUDA graph: here without the graph, on a GPU with it."""

import contextlib

import pytest
import torch
from decoders import CELLS, SIZES, Decoder, clear_decoder, step_loop
from gpu import require_cuda

from seqkernels import decode_graph
from seqkernels.decode import _STEPS, greedy
from seqkernels.decode_graph import Steps

NAMES = ["single-row", "four-rows", "packed-odd"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_fixed_buffers_give_the_step_loop(cell, name):
    drawn = step_loop(Decoder(cell, SIZES[name], 0), 20).tokens
    eos = int(drawn[:, 1:6].flatten().mode().values)
    decoder, expected = clear_decoder(cell, SIZES[name], 20, eos=eos)
    _, embedding, layers, projection, state, start = decoder.arguments()
    steps = Steps(
        _STEPS[cell], len(state), embedding, layers, projection, len(start), 20, eos, True
    )
    for _ in range(2):  # the second call begins with the buffers that the first left
        steps.begin(state, start, -7)
        steps.run()
        assert torch.equal(steps.tokens, expected.tokens)
        assert torch.equal(steps.lengths, expected.lengths)
        for found, reference in zip(steps.state, expected.state, strict=True):
            torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            steps.log_probs.double(), expected.log_probs, rtol=1e-4, atol=1e-4
        )


def on(device, value):
    if isinstance(value, torch.Tensor):
        return value.detach().to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(on(device, v) for v in value)
    return value


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["persistent", "graph", "reference"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_cuda_gives_the_step_loop(cell, name, backend):
    device = require_cuda()
    drawn = step_loop(Decoder(cell, SIZES[name], 0), 20).tokens
    eos = int(drawn[:, 1:6].flatten().mode().values)
    decoder, expected = clear_decoder(cell, SIZES[name], 20, eos=eos)
    arguments = on(device, decoder.arguments())
    for _ in range(3):
        found = greedy(*arguments, max_length=20, eos=eos, pad=-7, log_probs=True, backend=backend)
        assert torch.equal(found.tokens.cpu(), expected.tokens)
        assert torch.equal(found.lengths.cpu(), expected.lengths)
        for state, reference in zip(found.state, expected.state, strict=True):
            torch.testing.assert_close(state.cpu().double(), reference, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.log_probs.cpu().double(), expected.log_probs, rtol=1e-4, atol=1e-4
        )


@pytest.mark.cuda
@pytest.mark.parametrize("first", [False, True])
def test_a_graph_with_log_probabilities_is_not_one_without(first):
    device = require_cuda()
    decoder, expected = clear_decoder("gru", SIZES["four-rows"], 9)
    arguments = on(device, decoder.arguments())
    for wanted in (first, not first):
        found = greedy(*arguments, max_length=9, log_probs=wanted, backend="graph")
        assert torch.equal(found.tokens.cpu(), expected.tokens)
        if wanted:
            torch.testing.assert_close(
                found.log_probs.cpu().double(), expected.log_probs, rtol=1e-4, atol=1e-4
            )
        else:
            assert found.log_probs is None


@pytest.fixture
def kept_steps(monkeypatch):
    """The decoders that are kept, none at first; they run on the CPU, without their graphs."""
    monkeypatch.setattr(decode_graph, "_graphs", decode_graph.OrderedDict())
    monkeypatch.setattr(Steps, "capture", lambda self: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "a stream")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return decode_graph._graphs


def graph_arguments(decoder, max_length=9, eos=-1, scores=False):
    cell, embedding, layers, projection, state, start = decoder.arguments()
    return {
        "step": _STEPS[cell],
        "embedding": embedding,
        "layers": layers,
        "projection": projection,
        "state": state,
        "start": start,
        "max_length": max_length,
        "eos": eos,
        "pad": -7,
        "scores": scores,
    }


def fewer_rows(arguments, rows=2):
    state = tuple(s[:, :rows] for s in arguments["state"])
    return arguments | {"state": state, "start": arguments["start"][:rows]}


def flat(results):
    return [*results[:3], *results[3]]


OTHER_CALLS = {
    "scores": lambda a: a | {"scores": True},
    "eos": lambda a: a | {"eos": int(decode_graph.greedy(**a)[0][0, 2])},
    "max_length": lambda a: a | {"max_length": 4},
    "rows": fewer_rows,
    "cell": lambda a: a | {"step": torch.rnn_relu_cell},
    "layers": lambda a: a | {"layers": a["layers"][:2], "state": tuple(s[:2] for s in a["state"])},
    "order of layers": lambda a: a | {"layers": [a["layers"][i] for i in (0, 2, 1)]},
    "embedding": lambda a: a | {"embedding": a["embedding"].flip(0)},
    "strides": lambda a: (
        a | {"projection": (a["projection"][0].as_strided((64, 32), (1, 64)), a["projection"][1])}
    ),
    "no bias": lambda a: a | {"projection": (a["projection"][0], None)},
    "no biases": lambda a: a | {"layers": [(*layer[:2], None, None) for layer in a["layers"]]},
}


@pytest.mark.parametrize("change", OTHER_CALLS.values(), ids=OTHER_CALLS)
def test_a_kept_decoder_serves_no_other_call(change, kept_steps):
    """Each call, made after one that differs in a single thing, gives what it gives alone."""
    base = graph_arguments(Decoder("rnn_tanh", SIZES["four-rows"], 3))
    calls = [base, change(base)]
    alone = []
    for call in calls:
        kept_steps.clear()
        alone.append(flat(decode_graph.greedy(**call)))
    same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(*alone, strict=True)]
    assert not all(same), "the two calls cannot be told apart"
    for order in ((0, 1), (1, 0)):
        kept_steps.clear()
        for i in (*order, *order):
            assert all(map(torch.equal, flat(decode_graph.greedy(**calls[i])), alone[i]))
        assert len(kept_steps) == 2


def test_a_kept_decoder_belongs_to_a_stream_and_a_precision(kept_steps, monkeypatch):
    call = graph_arguments(Decoder("gru", SIZES["four-rows"], 3))
    for _ in range(2):
        decode_graph.greedy(**call)
    assert len(kept_steps) == 1
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "another")
    decode_graph.greedy(**call)
    assert len(kept_steps) == 2
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = not before
        decode_graph.greedy(**call)
    finally:
        matmul.allow_tf32 = before
    assert len(kept_steps) == 3


def test_the_decoder_used_longest_ago_is_let_go(kept_steps):
    call = graph_arguments(Decoder("gru", SIZES["four-rows"], 3))
    kept = decode_graph._KEPT
    for length in (*range(1, kept + 1), 1, kept + 1):
        decode_graph.greedy(**call | {"max_length": length})
    lengths = [steps.tokens.shape[1] for steps in kept_steps.values()]
    assert lengths == [*range(3, kept + 1), 1, kept + 1]


@pytest.mark.cuda
def test_a_graph_follows_its_weights():
    device = require_cuda()
    first, _ = clear_decoder("lstm", SIZES["four-rows"], 9)
    second = Decoder("lstm", SIZES["four-rows"], 77)
    arguments = on(device, first.arguments())
    before = greedy(*arguments, max_length=9, backend="graph")
    with torch.no_grad():
        for old, new in zip(arguments[2], on(device, second.arguments())[2], strict=True):
            for weight, value in zip(old, new, strict=True):
                weight.copy_(value)
    after = greedy(*arguments, max_length=9, backend="graph")
    expected = greedy(*arguments, max_length=9, backend="reference")
    assert torch.equal(after.tokens, expected.tokens)
    assert not torch.equal(after.tokens, before.tokens)


@pytest.mark.cuda
def test_a_persistent_grid_that_does_not_fit_is_refused():
    device = require_cuda()
    decoder = Decoder("gru", SIZES["packed-many"], 0)
    with pytest.raises(RuntimeError, match="at most 64 rows"):
        greedy(*on(device, decoder.arguments()), max_length=3, backend="persistent")
    chosen = greedy(*on(device, decoder.arguments()), max_length=3)
    assert chosen.tokens.shape == (70, 3)
