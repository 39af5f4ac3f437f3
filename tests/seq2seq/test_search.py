"""Greedy and beam search against each other and against the search of every sequence."""

import itertools

import pytest
import torch
from seq2seq_models import BOS, EOS, PAD, random_batch, small_model

import seqkernels

CELLS = ("lstm", "gru", "rnn")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sharpened(model):
    """Larger weights, so that the scores of symbols differ and sequences end at different steps."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.decoder.output.bias[EOS] += 0.5
    return model


def log_probability(model, source, tokens):
    """Of one target [T] without its start symbol, by one teacher-forced call."""
    target = torch.cat((torch.tensor([BOS]), tokens)).unsqueeze(1)
    scores = torch.log_softmax(model(source, target)[1:, 0], -1)
    return scores.gather(1, tokens.unsqueeze(1)).sum().item()


def every_target(symbols, max_length):
    """All targets that end within max_length, and those cut off there."""
    others = [s for s in range(symbols) if s != EOS]
    for length in range(max_length + 1):
        for body in itertools.product(others, repeat=length):
            if length < max_length:
                yield (*body, EOS)
            else:
                yield body


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("attention", [None, "general"])
def test_a_wide_beam_agrees_with_exhaustive_search(attention, length_penalty):
    symbols, max_length, wanted = 4, 4, 6
    model = sharpened(small_model(symbols=symbols, attention=attention)).double()
    source, _, _ = random_batch(rows=3, steps=4, symbols=symbols)
    found = model.generate(
        source,
        max_length=max_length,
        strategy="beam",
        beam_size=128,
        length_penalty=length_penalty,
        num_return_sequences=wanted,
    )
    for row in range(3):
        scored = []
        for target in every_target(symbols, max_length):
            score = log_probability(model, source[:, row : row + 1], torch.tensor(target))
            scored.append((score / ((5 + len(target)) / 6) ** length_penalty, target))
        scored.sort(reverse=True)
        for rank, (score, target) in enumerate(scored[:wanted]):
            place = row * wanted + rank
            length = int(found.lengths[place])
            assert tuple(found.tokens[:length, place].tolist()) == target
            assert found.scores[place].item() == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("attention", [None, "additive"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_beam_of_one_is_the_greedy_search(cell, attention):
    model = sharpened(small_model(cell=cell, attention=attention))
    source, _, _ = random_batch(rows=20)
    greedy = model.generate(source, length_penalty=0.7)
    beam = model.generate(source, strategy="beam", beam_size=1, length_penalty=0.7)
    assert torch.equal(greedy.tokens, beam.tokens)
    assert torch.equal(greedy.lengths, beam.lengths)
    assert torch.equal(greedy.scores, beam.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", [*CELLS, "rnn_relu"])
def test_the_fused_search_is_the_step_loop(cell, layers, dtype):
    model = small_model(cell=cell, layers=layers).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 if cell == "rnn_relu" else 3.0)
    source, _, _ = random_batch(rows=25)
    fused = model.generate(source, fused=True, length_penalty=0.5)
    loop = model.generate(source, fused=False, length_penalty=0.5)
    assert torch.equal(fused.tokens, loop.tokens)
    assert torch.equal(fused.lengths, loop.lengths)
    torch.testing.assert_close(fused.scores.float(), loop.scores, rtol=1e-5, atol=1e-5)
    calls = []
    model.decoder.decode = lambda *_: calls.append(1)
    assert torch.equal(model.generate(source).tokens, loop.tokens)
    assert not calls


def test_the_fused_search_of_a_gru_that_replaces_its_state():
    model = small_model(cell="gru")
    sizes = model.decoder.rnn.input_size, model.decoder.rnn.hidden_size
    model.decoder.rnn = seqkernels.GRU(*sizes, update="replace")
    sharpened(model)
    source, _, _ = random_batch(rows=25)
    fused, loop = (model.generate(source, fused=fused) for fused in (True, False))
    assert torch.equal(fused.tokens, loop.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attention="dot"), "attention"),
        (dict(library="torch"), "torch.nn"),
    ],
)
def test_the_fused_search_says_why_it_cannot_run(options, message):
    source, _, _ = random_batch()
    model = small_model(**options)
    with pytest.raises(RuntimeError, match=message):
        model.generate(source, fused=True)
    with pytest.raises(ValueError, match="only the greedy"):
        model.generate(source, fused=True, strategy="beam")


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_scores_are_the_log_probabilities_of_the_tokens(strategy):
    model = sharpened(small_model(attention="general")).double()
    source, _, lengths = random_batch(rows=8)
    found = model.generate(source, max_length=12, strategy=strategy)
    for row in range(8):
        tokens = found.tokens[: found.lengths[row], row]
        expected = log_probability(model, source[: lengths[row], row : row + 1], tokens)
        assert found.scores[row].item() == pytest.approx(expected, rel=1e-5)


def test_a_beam_finds_what_greedy_misses_and_is_sorted():
    model = sharpened(small_model(hidden=24))
    source, _, _ = random_batch(rows=60)
    greedy = model.generate(source, max_length=10)
    beam = model.generate(
        source, max_length=10, strategy="beam", beam_size=8, num_return_sequences=8
    )
    scores = beam.scores.view(60, 8)
    assert (scores[:, 0] >= greedy.scores - 1e-5).all()
    assert (scores[:, 0] > greedy.scores + 1e-3).any()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    distinct = {(n // 8, tuple(column.tolist())) for n, column in enumerate(beam.tokens.t())}
    assert len(distinct) == 60 * 8


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_tokens_end_once_and_are_padded_after(strategy):
    model = sharpened(small_model())
    source, _, _ = random_batch(rows=30)
    found = model.generate(source, max_length=15, strategy=strategy)
    assert len(found.tokens) == found.lengths.max()
    assert len(set(found.lengths.tolist())) > 1
    for length, column in zip(found.lengths, found.tokens.t(), strict=True):
        assert (column[: length - 1] != EOS).all()
        assert column[length - 1] == EOS or length == 15
        assert (column[length:] == PAD).all()


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_a_row_gets_the_same_answer_alone(strategy):
    model = sharpened(small_model(attention="general", bidirectional=True)).double()
    source, _, lengths = random_batch(rows=12)
    together = model.generate(source, strategy=strategy, max_length=12)
    for row, length in enumerate(lengths):
        alone = model.generate(source[:length, row : row + 1], strategy=strategy, max_length=12)
        steps = int(alone.lengths)
        assert steps == together.lengths[row]
        assert torch.equal(alone.tokens[:steps, 0], together.tokens[:steps, row])


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_the_search_stops_when_all_rows_have_ended(strategy):
    model = small_model()
    with torch.no_grad():
        model.decoder.output.bias[EOS] = 50.0
    calls = []
    model.decoder.rnn.register_forward_hook(lambda *_: calls.append(1))
    source, _, _ = random_batch()
    found = model.generate(source, max_length=500, strategy=strategy, fused=False)
    assert len(calls) < 8
    assert (found.lengths == 1).all()


def test_fewer_targets_than_asked_for_are_marked():
    model = small_model(symbols=4)
    source, _, _ = random_batch(rows=2, symbols=4)
    found = model.generate(
        source, max_length=1, strategy="beam", beam_size=6, num_return_sequences=6
    )
    lengths = found.lengths.view(2, 6)
    assert (lengths[:, :4] == 1).all()
    assert (lengths[:, 4:] == 0).all()
    assert found.scores.view(2, 6)[:, 4:].isneginf().all()


def test_generation_leaves_the_model_as_it_was():
    model = small_model(dropout=0.5)
    source, _, _ = random_batch()
    first = model.generate(source)
    assert model.training
    assert torch.equal(first.tokens, model.generate(source).tokens)
    assert not first.scores.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(strategy="sample"), "unknown strategy 'sample'"),
        (dict(strategy="beam", beam_size=0), "beam_size"),
        (dict(strategy="beam", beam_size=2, num_return_sequences=3), "expected 1 to 2"),
        (dict(num_return_sequences=2), "expected 1 to 1"),
        (dict(max_length=0), "max_length"),
    ],
)
def test_bad_options_are_refused(options, message):
    source, _, _ = random_batch()
    with pytest.raises(ValueError, match=message):
        small_model().generate(source, **options)


def test_bad_sources_are_refused():
    model = small_model()
    source, _, lengths = random_batch()
    with pytest.raises(ValueError, match="empty"):
        model.generate(source[:0])
    with pytest.raises(IndexError, match="id 90"):
        model.generate(torch.full_like(source, 90))
    with pytest.raises(ValueError, match="row 0 has 0 steps"):
        model.generate(source, torch.zeros_like(lengths))
    model.bos_idx = None
    with pytest.raises(ValueError, match="bos_idx"):
        model.generate(source)


def test_generate_gives_every_part_its_own_mode_back():
    model = small_model().train()
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    model.generate(random_batch()[0])
    assert [module.training for module in model.modules()] == before
    assert set(before) == {True, False}


def test_one_op_does_not_replace_a_decoder_with_a_hook():
    model = small_model()
    source, _, _ = random_batch()
    model.decoder.output.register_forward_hook(lambda module, inputs, output: output.neg())
    stepwise = model.generate(source, max_length=8, fused=False)
    assert torch.equal(model.generate(source, max_length=8).tokens, stepwise.tokens)
    with pytest.raises(RuntimeError, match="hook"):
        model.generate(source, fused=True)


def test_one_op_does_not_replace_an_embedding_that_renormalises():
    model = small_model()
    source, _, _ = random_batch()
    model.decoder.embedding.max_norm = 0.1
    with pytest.raises(RuntimeError, match="renormalises"):
        model.generate(source, fused=True)
    scores = model.generate(source, max_length=8).scores
    assert torch.equal(model.generate(source, max_length=8, fused=False).scores, scores)
