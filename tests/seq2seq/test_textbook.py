"""The textbook encoder-decoder runs as written, and equals the same program on torch.nn."""

import pytest
import torch
from seq2seq_models import PAD, random_batch
from torch import nn

from seqkernels.seq2seq import DecoderLSTM, EncoderLSTM, Seq2Seq


@pytest.fixture
def model():
    encoder = EncoderLSTM(9, 12, 16, 2, 0.0)
    return Seq2Seq(encoder, DecoderLSTM(9, 12, 16, 2, 0.0, 9))


def test_shapes_as_the_textbook_has_them(model):
    source, target, _ = random_batch()
    hidden, cell = model.encoder(source)
    assert hidden.shape == cell.shape == (2, 5, 16)
    scores, hidden, cell = model.decoder(target[0], hidden, cell)
    assert scores.shape == (5, 9)
    assert hidden.shape == (2, 5, 16)
    assert model(source, target).shape == (*target.shape, 9)
    assert model(source, target, 0.5).shape == (*target.shape, 9)


def test_the_textbook_loop_gives_the_same_scores(model):
    source, target, _ = random_batch()
    outputs = torch.zeros(len(target), source.shape[1], 9)
    hidden, cell = model.encoder(source)
    x = target[0]
    for t in range(1, len(target)):
        output, hidden, cell = model.decoder(x, hidden, cell)
        outputs[t] = output
        x = target[t]
    torch.testing.assert_close(model(source, target), outputs)


def test_the_same_program_on_torch_layers(model):
    source, target, _ = random_batch()
    encoder = nn.LSTM(12, 16, 2)
    encoder.load_state_dict(model.encoder.rnn.state_dict())
    decoder = nn.LSTM(12, 16, 2)
    decoder.load_state_dict(model.decoder.rnn.state_dict())
    _, states = encoder(model.encoder.embedding(source))
    output, _ = decoder(model.decoder.embedding(target[:-1]), states)
    torch.testing.assert_close(model(source, target)[1:], model.decoder.output(output))


def test_variable_lengths():
    encoder = EncoderLSTM(9, 12, 16, 2, 0.0, padding_idx=PAD)
    source, _, lengths = random_batch()
    hidden, _ = encoder(source)
    torch.testing.assert_close(hidden, encoder(source, lengths)[0])
    for row, length in enumerate(lengths):
        alone, _ = encoder(source[:length, row : row + 1])
        torch.testing.assert_close(hidden[:, row : row + 1], alone)


def test_the_textbook_training_step(model):
    source, target, _ = random_batch(rows=32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    criterion = nn.CrossEntropyLoss(ignore_index=PAD)
    losses = []
    for _ in range(40):
        output = model(source, target)
        loss = criterion(output[1:].reshape(-1, output.shape[2]), target[1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_an_id_outside_the_vocabulary_is_named(model):
    hidden, cell = model.encoder(torch.full((3, 2), 4))
    with pytest.raises(IndexError, match="id 9 is outside the vocabulary, 0 to 8"):
        model.decoder(torch.tensor([1, 9]), hidden, cell)
