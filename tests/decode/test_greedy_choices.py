"""What greedy decoding does at the edges: ends of rows, equal logits, NaN, nothing to do."""

import pytest
import torch
from decoders import CELLS, SIZES, Decoder, Sizes, clear_decoder, step_loop

from seqkernels.decode import greedy

BACKENDS = ["native", "reference"]


def tokens_by_bias(bias: list[float], rows: int = 1, max_length: int = 1, **options):
    """Decode with logits that are the bias of the projection alone."""
    cell, embedding, layers, (weight, _), state, start = Decoder(
        "gru", Sizes(rows, 3, 4, len(bias), 1), 0
    ).arguments()
    projection = (torch.zeros_like(weight), torch.tensor(bias))
    return greedy(
        cell, embedding, layers, projection, state, start, max_length=max_length, **options
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["single-row", "four-rows", "packed-odd", "packed-many"])
@pytest.mark.parametrize("cell", CELLS)
def test_rows_end_at_eos(cell, name, backend):
    sizes = SIZES[name]
    # The token that most rows write soon, so that rows end at different steps.
    drawn = step_loop(Decoder(cell, sizes, 0), 10).tokens
    eos = int(drawn[:, 1:6].flatten().mode().values)
    decoder, expected = clear_decoder(cell, sizes, 10, eos=eos)
    found = greedy(
        *decoder.arguments(), max_length=10, eos=eos, pad=-7, log_probs=True, backend=backend
    )
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.lengths, expected.lengths)
    torch.testing.assert_close(found.log_probs.double(), expected.log_probs, rtol=1e-4, atol=1e-4)
    for state, reference in zip(found.state, expected.state, strict=True):
        torch.testing.assert_close(state.double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_ends_at_the_first_step(backend):
    found = tokens_by_bias([0.0, 1.0, 0.0], rows=3, max_length=6, eos=1, pad=9, backend=backend)
    assert found.tokens.tolist() == [[1, 9, 9, 9, 9, 9]] * 3
    assert found.lengths.tolist() == [1, 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_eos_by_default(backend):
    assert tokens_by_bias([0.0, 2.0], max_length=3, eos=1, backend=backend).tokens.tolist() == [
        [1, 1, 1]
    ]


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_of_equals_is_taken(rows, backend):
    for size, winners in ((200, (3, 70, 150)), (17, (16,)), (130, (0, 129)), (600, (255, 256))):
        bias = [0.0] * size
        for winner in winners:
            bias[winner] = 2.5
        found = tokens_by_bias(bias, rows, backend=backend)
        assert found.tokens.unique().tolist() == [winners[0]], (size, winners)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "bias",
    [
        [1.0, float("nan"), 3.0, float("nan")],
        [float("-inf")] * 5,
        [float("-inf"), -3.0, float("-inf")],
        [1.0, float("inf"), float("inf")],
        [0.0, -0.0],
    ],
    ids=["nan", "nothing", "masked", "infinite", "signed-zero"],
)
def test_odd_logits_as_argmax_has_them(bias, backend):
    found = tokens_by_bias(bias * 1, log_probs=True, backend=backend)
    assert found.tokens.item() == torch.tensor(bias).argmax().item()
    expected = torch.log_softmax(torch.tensor(bias), 0)[found.tokens[0, 0]]
    torch.testing.assert_close(found.log_probs[0], expected, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_words_have_no_weight_in_the_scores(backend):
    bias = torch.full((500,), float("-inf"))
    bias[[3, 200, 410]] = torch.tensor([1.0, 2.0, 0.5])
    found = tokens_by_bias(bias.tolist(), log_probs=True, backend=backend)
    assert found.tokens.item() == 200
    torch.testing.assert_close(found.log_probs[0], torch.log_softmax(bias, 0)[200])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_do(cell, backend):
    decoder = Decoder(cell, SIZES["four-rows"], 0)
    found = greedy(*decoder.arguments(), max_length=0, log_probs=True, backend=backend)
    assert found.tokens.shape == (4, 0) and found.lengths.tolist() == [0] * 4
    assert found.log_probs.tolist() == [0.0] * 4
    for state, before in zip(found.state, decoder.state, strict=True):
        assert torch.equal(state, before)
    empty = Decoder(cell, Sizes(0, 4, 5, 6, 2), 0)
    found = greedy(*empty.arguments(), max_length=3, backend=backend)
    assert found.tokens.shape == (0, 3) and found.state[0].shape == (2, 0, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone(backend):
    decoder = Decoder("lstm", SIZES["packed-odd"], 0)
    before = [s.clone() for s in decoder.state]
    greedy(*decoder.arguments(), max_length=5, backend=backend)
    for state, kept in zip(decoder.state, before, strict=True):
        assert torch.equal(state, kept)


def test_strided_inputs():
    decoder, expected = clear_decoder("gru", SIZES["packed-odd"], 6)
    cell, embedding, layers, projection, state, start = decoder.arguments()

    def strided(t):
        return None if t is None else torch.stack((t, t), -1)[..., 0]

    found = greedy(
        cell, strided(embedding), [tuple(strided(w) for w in layer) for layer in layers],
        tuple(strided(w) for w in projection), tuple(strided(s) for s in state), strided(start),
        max_length=6, pad=-7,
    )  # fmt: skip
    assert torch.equal(found.tokens, expected.tokens)


def test_one_start_token_for_all_rows():
    decoder = Decoder("rnn_tanh", SIZES["four-rows"], 0)
    arguments = decoder.arguments()
    one = greedy(*arguments[:-1], 5, max_length=4)
    each = greedy(*arguments[:-1], torch.full((4,), 5), max_length=4)
    assert torch.equal(one.tokens, each.tokens)
