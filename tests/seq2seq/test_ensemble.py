"""Several models that write one target: their mean, their independence, what is refused."""

import copy

import pytest
import torch
from seq2seq_models import BOS, EOS, random_batch, small_model

from seqkernels.seq2seq import Ensemble


def unlike_members():
    """Members of other cells, widths and attention, sure enough of themselves to disagree."""
    torch.manual_seed(3)
    models = [
        small_model(cell="lstm", attention="general"),
        small_model(cell="gru", hidden=24),
        small_model(cell="rnn", attention="additive", bidirectional=True),
    ]
    with torch.no_grad():
        for model in models:
            model.decoder.output.weight.mul_(20)
    return models


def mean_log_probability(models, source, lengths, target):
    """Of one target, [T] with its end symbol, from the members' teacher-forced scores."""
    read = torch.cat((torch.tensor([BOS]), target)).unsqueeze(1)
    with torch.no_grad():
        each = [model(source, read, lengths=lengths)[1:, 0].softmax(-1) for model in models]
    mean = torch.stack(each).mean(0)
    return mean.gather(1, target.unsqueeze(1)).log().sum().item()


@pytest.mark.parametrize("options", [{}, dict(strategy="beam", beam_size=5)])
def test_the_probabilities_are_the_mean_of_the_members(options):
    models = unlike_members()
    ensemble = Ensemble(models).eval()
    source, _, lengths = random_batch()
    found = ensemble.generate(source, lengths, max_length=12, **options)
    alone = [model.generate(source, lengths, max_length=12, **options) for model in models]
    assert any(not torch.equal(one.tokens, found.tokens) for one in alone)
    for row in range(source.shape[1]):
        target = found.tokens[: int(found.lengths[row]), row]
        row_source = source[: int(lengths[row]), row : row + 1]
        expected = mean_log_probability(models, row_source, lengths[row : row + 1], target)
        assert found.scores[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_greedy_search_takes_the_best_mean():
    models = unlike_members()
    source, _, lengths = random_batch()
    found = Ensemble(models).eval().generate(source, lengths, max_length=6)
    read = torch.cat((torch.full((1, source.shape[1]), BOS), found.tokens))
    with torch.no_grad():
        each = [model(source, read, lengths=lengths)[1:].softmax(-1) for model in models]
    best = torch.stack(each).mean(0).argmax(-1)
    for row, length in enumerate(found.lengths.tolist()):
        assert best[:length, row].tolist() == found.tokens[:length, row].tolist()


@pytest.mark.parametrize("options", [{}, dict(strategy="beam", beam_size=4)])
@pytest.mark.parametrize("count", [1, 3])
def test_equal_members_write_as_one(count, options):
    torch.manual_seed(0)
    model = small_model(attention="dot", batch_first=True)
    source, _, lengths = random_batch()
    alone = model.generate(source.t(), lengths, **options)
    ensemble = Ensemble([copy.deepcopy(model) for _ in range(count)])
    found = ensemble.generate(source.t(), lengths, **options)
    assert torch.equal(found.tokens, alone.tokens)
    assert torch.equal(found.lengths, alone.lengths)
    torch.testing.assert_close(found.scores, alone.scores)
    assert ensemble.training


def test_each_member_is_scored_and_trained_by_itself():
    models = unlike_members()
    ensemble = Ensemble(models)
    source, target, lengths = random_batch()
    scores = ensemble(source, target, lengths=lengths)
    for model, own in zip(models, scores, strict=True):
        assert torch.equal(own, model(source, target, lengths=lengths))
    scores[1].sum().backward()
    assert all(p.grad is None for p in models[0].parameters())
    assert any(p.grad is not None for p in models[1].parameters())
    names = {name.split(".")[1] for name in ensemble.state_dict()}
    assert names == {"0", "1", "2"}


def test_attention_is_the_mean_of_the_members():
    torch.manual_seed(0)
    models = [small_model(attention="dot"), small_model(attention="general", hidden=24)]
    source, target, lengths = random_batch()
    weights = Ensemble(models).attention_weights(source, target, lengths)
    each = [model.attention_weights(source, target, lengths) for model in models]
    torch.testing.assert_close(weights, (each[0] + each[1]) / 2)
    with pytest.raises(ValueError, match="no attention"):
        Ensemble([models[0], small_model()]).attention_weights(source, target, lengths)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(symbols=8), "the source's number of symbols differs between the models: "),
        (dict(output_size=7), r"scored symbols differs between the models: \[9, 7\]"),
        (dict(padding_idx=None), "padding_idx differs"),
        (dict(batch_first=True), "batch_first differs"),
    ],
)
def test_members_of_other_symbols_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Ensemble([small_model(), small_model(**other)])


def test_members_of_other_special_symbols_and_none_are_refused():
    other = small_model()
    other.eos_idx = EOS + 1
    with pytest.raises(ValueError, match="eos_idx differs"):
        Ensemble([small_model(), other])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


def test_the_fused_search_is_refused_with_the_reason():
    source, _, lengths = random_batch()
    ensemble = Ensemble([small_model(), small_model()])
    with pytest.raises(RuntimeError, match="several models write together"):
        ensemble.generate(source, lengths, fused=True)
