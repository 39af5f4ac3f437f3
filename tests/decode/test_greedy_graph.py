"""The steps that are captured as a CUDA graph: here without the graph, on a GPU with it."""

import pytest
import torch
from decoders import CELLS, SIZES, Decoder, clear_decoder, step_loop
from gpu import require_cuda

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
