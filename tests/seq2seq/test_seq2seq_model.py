"""Encoder, decoder and their union: shapes, masking, teacher forcing, bridges, sharing."""

import pytest
import torch
from seq2seq_models import BOS, PAD, random_batch, small_model
from torch import nn

from seqkernels.seq2seq import Decoder, Encoder, Seq2Seq, teacher_forcing_ratio

CELLS = ("lstm", "gru", "rnn", "rnn_relu")
ATTENTIONS = (None, "dot", "general", "additive")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("bidirectional", "layers"), [(False, 1), (True, 2)])
def test_one_call_equals_the_step_loop(cell, attention, bidirectional, layers):
    model = small_model(
        cell=cell, attention=attention, bidirectional=bidirectional, layers=layers
    ).double()
    source, target, lengths = random_batch()
    scores = model(source, target, lengths=lengths)
    carry, memory = model.encode(source, lengths)
    for t in range(1, len(target)):
        score, carry = model.decoder.step(target[t - 1], carry, memory)
        torch.testing.assert_close(scores[t], score, rtol=1e-10, atol=1e-12)
    assert not scores[0].any()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_same_model_of_torch_layers(cell, attention):
    options = dict(cell=cell, attention=attention, bidirectional=True, layers=2)
    ours = small_model(**options).double()
    torchs = small_model(**options, library="torch").double()
    torchs.load_state_dict(ours.state_dict())
    source, target, lengths = random_batch()
    grad = torch.randn(*target.shape, 9, dtype=torch.float64)
    for model in (ours, torchs):
        (model(source, target, lengths=lengths) * grad).sum().backward()
    for (name, ours_p), torchs_p in zip(ours.named_parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(ours_p.grad, torchs_p.grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_row_does_not_see_its_padding_nor_its_neighbours(attention):
    model = small_model(attention=attention, bidirectional=True).double()
    source, target, lengths = random_batch()
    together = model(source, target, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = model(source[:length, row : row + 1], target[:, row : row + 1])
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=1e-10, atol=1e-12)


def test_lengths_are_counted_from_the_padding():
    model = small_model(attention="general")
    source, target, lengths = random_batch()
    torch.testing.assert_close(model(source, target), model(source, target, lengths=lengths))


def test_attention_weights_are_a_distribution_over_the_source():
    model = small_model(attention="general", bidirectional=True)
    source, target, lengths = random_batch()
    weights = model.attention_weights(source, target, lengths)
    assert weights.shape == (source.shape[1], len(target) - 1, len(source))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    past_end = torch.arange(len(source)) >= lengths.unsqueeze(1)
    assert not weights.masked_select(past_end.unsqueeze(1)).any()


def test_batch_first_is_the_transpose():
    source, target, lengths = random_batch()
    time_first = small_model(attention="general")
    batch_first = small_model(attention="general", batch_first=True)
    batch_first.load_state_dict(time_first.state_dict())
    expected = time_first(source, target, lengths=lengths)
    got = batch_first(source.t(), target.t(), lengths=lengths)
    torch.testing.assert_close(got.transpose(0, 1), expected)
    a, b = time_first.generate(source), batch_first.generate(source.t())
    assert torch.equal(a.tokens, b.tokens.t())
    output, _ = batch_first.encoder(source.t())
    assert output.shape[:2] == source.t().shape


def test_ratio_zero_reads_its_own_best_symbols():
    model = small_model().double()
    source, target, _ = random_batch()
    free = model(source, target, 0.0)
    fed_back = torch.cat((target[:1], free[1:].argmax(-1)))
    torch.testing.assert_close(free, model(source, fed_back))
    changed = target.clone()
    changed[1:] = target[1:].flip(1)
    assert torch.equal(free, model(source, changed, 0.0))


def test_ratio_between_mixes_and_follows_the_seed():
    model = small_model()
    source, target, _ = random_batch(rows=40)
    torch.manual_seed(1)
    mixed = model(source, target, 0.5)
    torch.manual_seed(1)
    assert torch.equal(mixed, model(source, target, 0.5))
    assert not torch.allclose(mixed, model(source, target))
    assert not torch.allclose(mixed, model(source, target, 0.0))


def test_full_teacher_forcing_calls_the_recurrent_layer_once():
    model = small_model(attention="general")
    calls = []
    model.decoder.rnn.register_forward_hook(lambda *_: calls.append(1))
    source, target, _ = random_batch()
    model(source, target)
    assert len(calls) == 1
    model(source, target, 0.5)
    assert len(calls) == 1 + len(target) - 1


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
def test_input_feeding_carries_the_attentional_vector(attention):
    model = small_model(attention=attention, input_feeding=True).double()
    source, target, lengths = random_batch()
    scores = model(source, target, lengths=lengths)
    carry, memory = model.encode(source, lengths)
    assert not carry.feed.any()
    for t in range(1, len(target)):
        score, carry = model.decoder.step(target[t - 1], carry, memory)
        torch.testing.assert_close(scores[t], score, rtol=1e-10, atol=1e-12)
    assert carry.feed.any()


def test_the_join_bridge_sets_directions_side_by_side():
    model = small_model(bidirectional=True, layers=2)
    source, _, _ = random_batch()
    _, states = model.encoder(source)
    for state, initial in zip(states, model.encode(source)[0].states, strict=True):
        assert torch.equal(initial[1], torch.cat((state[2], state[3]), -1))
    assert not list(model.bridge.parameters())


def test_the_linear_bridge_fits_any_width():
    encoder = Encoder(9, 8, 5, 3, cell="gru", bidirectional=True)
    model = Seq2Seq(encoder, Decoder(9, 8, 12, 2, cell="gru"))
    source, target, _ = random_batch()
    model(source, target).sum().backward()
    assert all(p.grad is not None for p in model.bridge.parameters())


def test_reversed_source_reads_each_row_from_its_end():
    encoder = Encoder(9, 8, 16, reverse_source=True)
    plain = Encoder(9, 8, 16)
    plain.load_state_dict(encoder.state_dict())
    source, _, lengths = random_batch()
    _, states = encoder(source, lengths)
    for row, length in enumerate(lengths):
        _, expected = plain(source[:length, row : row + 1].flip(0))
        torch.testing.assert_close(states[0][:, row : row + 1], expected[0])


def test_embeddings_are_shared_and_the_output_tied():
    encoder = Encoder(9, 16, 16)
    decoder = Decoder(9, 16, 16, embedding=encoder.embedding, tied_output=True)
    model = Seq2Seq(encoder, decoder)
    assert model.decoder.output.weight is model.encoder.embedding.weight
    source, target, _ = random_batch()
    model(source, target).sum().backward()
    assert len(list(model.parameters())) == 1 + 4 + 4 + 1


def test_a_copy_task_is_learned():
    model = small_model(hidden=32, attention="general", bidirectional=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(150):
        source, target, _ = random_batch(rows=64, seed=step)
        scores = model(source, target)[1:]
        loss = nn.functional.cross_entropy(
            scores.flatten(0, 1), target[1:].flatten(), ignore_index=PAD
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    source, target, lengths = random_batch(rows=64, seed=-1)
    copied = model.generate(source, max_length=len(target) - 1)
    right = (copied.tokens == target[1 : len(copied.tokens) + 1]).all(0)
    assert torch.equal(copied.lengths[right], lengths[right] + 1)
    assert right.float().mean() > 0.95


def test_scheduled_sampling_decays():
    assert teacher_forcing_ratio(30, "linear", rate=0.01) == pytest.approx(0.7)
    assert teacher_forcing_ratio(1000, "linear", rate=0.01, floor=0.2) == 0.2
    assert teacher_forcing_ratio(3, "exponential", rate=0.5) == 0.125
    assert teacher_forcing_ratio(0, rate=10.0) == pytest.approx(10 / 11)
    assert teacher_forcing_ratio(10**9, rate=10.0) < 1e-300
    for decay, rate in (("linear", -1.0), ("exponential", 1.5), ("inverse_sigmoid", 0.5)):
        with pytest.raises(ValueError, match="rate"):
            teacher_forcing_ratio(1, decay, rate=rate)
    with pytest.raises(ValueError, match="unknown decay"):
        teacher_forcing_ratio(1, "cosine", rate=1.0)


@pytest.mark.parametrize(
    ("encoder", "decoder", "bridge", "message"),
    [
        (dict(), dict(hidden_size=20), "join", "16 wide, the decoder's 20"),
        (dict(), dict(num_layers=2), None, "decoder has 2 layers, the encoder 1"),
        (dict(cell="gru"), dict(), None, "encoder cell 'gru'"),
        (dict(batch_first=True), dict(), None, "batch_first"),
        (dict(), dict(), "flat", "unknown bridge 'flat'"),
        (dict(cell="qrnn"), dict(), None, "unknown cell 'qrnn'"),
        (dict(library="jax"), dict(), None, "unknown library 'jax'"),
        (dict(), dict(attention="hard"), None, "unknown attention 'hard'"),
        (dict(), dict(attention="dot", memory_size=7), None, "equal widths"),
        (dict(), dict(attention="general", memory_size=7), None, "memory_size=7"),
        (dict(), dict(input_feeding=True), None, "input_feeding needs attention"),
        (dict(), dict(tied_output=True), None, "tied_output"),
        (dict(), dict(embedding=nn.Embedding(4, 4)), None, r"expected \[9, 8\], got \[4, 4\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(encoder, decoder, bridge, message):
    with pytest.raises(ValueError, match=message):
        Seq2Seq(
            Encoder(**(dict(input_size=9, embedding_size=8, hidden_size=16) | encoder)),
            Decoder(**(dict(input_size=9, embedding_size=8, hidden_size=16) | decoder)),
            bridge=bridge,
        )


def test_bad_batches_are_refused():
    model = small_model(padding_idx=None)
    source, target, lengths = random_batch()
    source[0, 0] = 8
    cases = [
        (ValueError, "source: empty", (source[:0], target)),
        (ValueError, "source: empty", (source[:, :0], target[:, :0])),
        (ValueError, "target: empty", (source, target[:0])),
        (ValueError, "2 dimensions", (source[:, 0], target)),
        (ValueError, "source has 5 sequences, target 4", (source, target[:, :4])),
        (TypeError, "integer ids", (source.float(), target)),
        (IndexError, "source: id 9 is outside the vocabulary, 0 to 8", (source + 1, target)),
        (IndexError, "target: id -1", (source, target - 1)),
        (ValueError, "teacher_forcing_ratio", (source, target, 1.5)),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            model(*arguments)
    wrong = lengths.clone()
    wrong[3] = 0
    for bad, message in (
        (wrong, "row 3 has 0 steps"),
        (lengths + 7, "row 0 has 14 steps, expected 1 to 7"),
        (lengths[:2], r"expected shape \[5\], got \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(source, target, lengths=bad)
    with pytest.raises(TypeError, match="lengths"):
        model(source, target, lengths=lengths.float())


def test_a_row_of_padding_alone_is_refused():
    model = small_model()
    source, target, _ = random_batch()
    source[:, 2] = PAD
    with pytest.raises(ValueError, match="row 2 has 0 steps"):
        model(source, target)


def test_a_target_of_the_start_symbol_alone_scores_nothing():
    model = small_model()
    source, _, _ = random_batch()
    assert not model(source, torch.full((1, source.shape[1]), BOS)).any()


def test_attention_weights_of_a_start_symbol_alone_are_empty():
    source, target, _ = random_batch()
    weights = small_model(attention="general").attention_weights(source, target[:1])
    assert weights.shape == (source.shape[1], 0, source.shape[0])


def test_what_is_not_a_tensor_is_refused():
    model = small_model()
    source, target, lengths = random_batch()
    with pytest.raises(TypeError, match="source: expected a Tensor of integer ids, got list"):
        model(source.tolist(), target)
    with pytest.raises(TypeError, match="target: expected a Tensor of integer ids, got list"):
        model(source, target.tolist())
    with pytest.raises(TypeError, match="lengths: expected a Tensor of integers, got list"):
        model(source, target, lengths=lengths.tolist())
    with pytest.raises(TypeError, match="source: expected a Tensor of integer ids, got list"):
        model.generate(source.tolist())
