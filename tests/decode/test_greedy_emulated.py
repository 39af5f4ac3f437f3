"""The CUDA kernel of greedy decoding and its binding, on the emulator."""

import pytest
import torch
import units
from decoders import CELLS, Decoder, Sizes, clear_decoder, step_loop
from tolerance import assert_parity

pytestmark = pytest.mark.needs("headers")

SIZES = {
    "one-block": Sizes(1, 3, 5, 7, 1),
    "one-row": Sizes(1, 6, 20, 70, 2),
    "one-word-a-block": Sizes(2, 4, 33, 5, 1),
    "tiles": Sizes(5, 5, 10, 37, 2),
    "three-layers": Sizes(3, 130, 9, 40, 3),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SCHEDULES = ["round robin", "shuffled", "depth first"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors are full of NaN and nothing may touch what lies behind them."""
    from emulated_ops import check_memory, guarded

    with guarded():
        yield
    check_memory()


def run(decoder: Decoder, *, schedule="round robin", max_length=5, eos=None, scores=True):
    """(tokens, lengths, log_probs, h_n, c_n) of the emulated op."""
    from emulated_ops import ops

    op = getattr(ops(schedule), f"{decoder.cell}_greedy").default
    return op(*decoder.op_arguments(max_length, -1 if eos is None else eos, scores=scores))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_matches_the_step_loop(cell, name):
    for dtype in DTYPES:
        decoder, expected = clear_decoder(cell, SIZES[name], 5, dtype=dtype)
        tokens, lengths, log_probs, *state = run(decoder)
        assert torch.equal(tokens, expected.tokens)
        assert torch.equal(lengths, expected.lengths)
        torch.testing.assert_close(log_probs.double(), expected.log_probs, rtol=1e-4, atol=1e-4)
        theirs = step_loop(decoder, 5) if dtype == torch.float32 else None
        for number, reference in enumerate(expected.state):
            assert_parity(state[number], theirs and theirs.state[number], reference, f"{dtype}")


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("cell", CELLS)
def test_schedules_change_nothing(cell, schedule):
    for name in ("one-row", "tiles"):
        decoder = Decoder(cell, SIZES[name], 1)
        for a, b in zip(run(decoder), run(decoder, schedule=schedule), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_end_at_eos(schedule):
    sizes = Sizes(9, 4, 12, 11, 2)
    eos = int(step_loop(Decoder("lstm", sizes, 0), 8).tokens[:, 1:5].flatten().mode().values)
    decoder, expected = clear_decoder("lstm", sizes, 8, eos=eos)
    assert 0 < expected.lengths.min() < expected.lengths.max()
    tokens, lengths, log_probs, *state = run(decoder, schedule=schedule, max_length=8, eos=eos)
    assert torch.equal(tokens, expected.tokens) and torch.equal(lengths, expected.lengths)
    torch.testing.assert_close(log_probs.double(), expected.log_probs, rtol=1e-4, atol=1e-4)
    for number, reference in enumerate(expected.state):
        torch.testing.assert_close(state[number].double(), reference, rtol=1e-5, atol=1e-5)


def test_without_biases_scores_or_work():
    decoder, expected = clear_decoder("gru", SIZES["tiles"], 5, bias=False)
    tokens, _, log_probs, *_ = run(decoder, scores=False)
    assert torch.equal(tokens, expected.tokens) and log_probs.numel() == 0
    tokens, lengths, _, h_n, _ = run(decoder, max_length=0)
    assert tokens.shape == (5, 0) and lengths.tolist() == [0] * 5
    assert torch.equal(h_n, decoder.state[0])


@pytest.mark.parametrize(
    "bias",
    [
        [0.0] * 17,
        [0.0] * 20 + [2.0] + [0.0] * 15 + [2.0],
        [1.0, float("nan"), 3.0, float("nan")],
        [float("-inf")] * 70,
        [float("-inf")] * 40 + [-3.0] + [float("-inf")] * 30,
    ],
    ids=["equal", "two", "nan", "nothing", "masked"],
)
def test_odd_logits_as_argmax_has_them(bias):
    decoder = Decoder("rnn_tanh", Sizes(2, 3, 4, len(bias), 1), 0)
    decoder.projection.weight.zero_()
    decoder.projection.bias.copy_(torch.tensor(bias))
    tokens, _, log_probs, *_ = run(decoder, max_length=1)
    assert tokens.unique().tolist() == [torch.tensor(bias).argmax().item()]
    expected = torch.log_softmax(torch.tensor(bias), 0)[tokens[:, 0]]
    torch.testing.assert_close(log_probs, expected, equal_nan=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_clean_under_a_sanitizer(sanitizer):
    import emulator
    from emulated_ops import library
    from recording import recorded, replay

    (source,) = (unit for unit in units.DECODE if unit.variant == "float32")
    watched = emulator.build([source], sanitizer=sanitizer)
    for cell, name, schedule in (("lstm", "tiles", "shuffled"), ("gru", "one-row", "depth first")):
        with recorded(library()) as launches:
            run(Decoder(cell, SIZES[name], 0), max_length=3)
        kernels = [launch for launch in launches if "decode_kernel" in launch.kernel]
        assert len(kernels) == 1
        replay(watched, kernels[0], schedule=schedule).check()


def refusal(rows=1, layers=1, hidden=64, vocabulary=100, dtype=torch.float32):
    from emulated_ops import ops

    op = ops().greedy_refusal.default
    return op(torch.empty(vocabulary, 64, dtype=dtype), 4, 2, layers, rows, hidden, vocabulary)


def test_what_does_not_fit_is_refused_with_a_reason():
    assert refusal() == ""
    assert refusal(rows=64, hidden=512, vocabulary=1024) == ""
    assert "at most 8 layers" in refusal(layers=9)
    assert "at most 64 rows" in refusal(rows=65)
    assert "no float64" in refusal(dtype=torch.float64)
    assert "do not fit" in refusal(hidden=1024, vocabulary=50000)
    assert refusal(hidden=1024, vocabulary=8000, dtype=torch.bfloat16) == ""
    wide = Decoder("lstm", Sizes(65, 2, 2, 3, 1), 0)
    with pytest.raises(RuntimeError, match="cannot run this call: it is made for at most 64 rows"):
        run(wide)
